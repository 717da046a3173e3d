// Up to which size this project's product kernels run, and above which the library's: largest m n k of a
// product. Written by `python -m tools.crossover --write`: measured on NVIDIA H100 80GB HBM3, 2026-11-26; but for those
// of float, which are from whole steps on an NVIDIA H200, 2026-11-27, with all products of one kind or of the other.
#pragma once

namespace fastgan::cuda::crossover {

constexpr double float32 = 7e+07;
constexpr double tf32 = 1e+08;
constexpr double half = 0;
constexpr double float64 = 0;
// Of float operands that the library must first be given as bfloat16.
constexpr double bf16_operands = 1e+08;
constexpr int narrow_batch = 1024;  // largest batch for the narrow network kernels

}  // namespace fastgan::cuda::crossover
