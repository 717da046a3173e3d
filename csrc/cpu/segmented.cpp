#include "segmented.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Columns that go through the panels at once, but for a run that is wider: 32 KiB a matrix of floats, of which the
// second-level cache holds all.
constexpr int64_t strip_columns = 256;

std::vector<SegmentStrip> strips_of(const Segments& segments) {
  std::vector<SegmentStrip> strips;
  int64_t noise = 0;
  for (int i = 0; i < segments.count; ++i) {
    const Segment& run = segments.list[i];
    const int64_t end = run.begin + run.width;
    if (strips.empty() || end - strips.back().begin > strip_columns) {
      const SegmentStrip next = {i, i, run.begin, run.begin, noise, noise};
      strips.push_back(next);
    }
    if (run.kind == SegmentKind::gumbel_softmax) noise += run.width;
    strips.back().last = i + 1;
    strips.back().end = end;
    strips.back().noise_end = noise;
  }
  return strips;
}

}  // namespace

template <class T>
void segmented(const Context&, const Segments& segments, const SegmentedPass<T>& pass) {
  using C = compute_t<T>;
  if (pass.rows == 0) return;
  const std::vector<SegmentStrip> strips = strips_of(segments);
  int64_t widest = 0;
  for (const SegmentStrip& strip : strips) widest = std::max(widest, strip.end - strip.begin);
  const int64_t matrix = widest * panel, panels = panel_count(pass.rows);
  const int matrices = std::is_same_v<T, C> ? 3 : 4;
  const int threads = int(
      std::min<int64_t>(panels, threads_for(double(pass.rows) * double(segments.columns), double(parallel_grain) / 2)));
  in_parallel(threads, [&](int thread, int in_force) {
    const std::unique_ptr<C[]> memory(new C[matrices * matrix + 64 / sizeof(C)]);
    C* const aligned = reinterpret_cast<C*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
    const SegmentedBuffers<C> buffers{
        strips.data(), int(strips.size()), {aligned, aligned + matrix, aligned + 2 * matrix}, aligned + 3 * matrix};
    with_kernels<C>([&](auto kernels) {
      kernels.segmented(segments, pass, buffers, panels * thread / in_force, panels * (thread + 1) / in_force);
    });
  });
}

#define FASTGAN_INSTANTIATE(T) template void segmented<T>(const Context&, const Segments&, const SegmentedPass<T>&);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
