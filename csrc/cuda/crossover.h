// Up to which size this project's product kernels run, and above which the library's: the largest m n k of a product.
// Written by `python -m bench.crossover`; these are estimates, not yet measured on a GPU.
#pragma once

namespace fastgan::cuda::crossover {

constexpr double float32 = 1.5e8;
constexpr double tf32 = 3e8;
constexpr double half = 3e8;
constexpr double float64 = 1e8;
constexpr int narrow_batch = 1024;  // largest batch for the narrow network kernels

}  // namespace fastgan::cuda::crossover
