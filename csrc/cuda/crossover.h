// Up to which size this project's product kernels run, and above which the library's: largest m n k of a
// product. Written by `python -m tools.crossover --write`: measured on NVIDIA H100 80GB HBM3, 2026-11-26.
#pragma once

namespace fastgan::cuda::crossover {

constexpr double float32 = 2.621e+05;
constexpr double tf32 = 2.621e+05;
constexpr double half = 0;
constexpr double float64 = 0;
// Of float operands that the library must first be given as bfloat16: from the times of a step's kernels on an H100.
constexpr double bf16_operands = 3e+07;
constexpr int narrow_batch = 1024;  // largest batch for the narrow network kernels

}  // namespace fastgan::cuda::crossover
