// The counts as JSON: what tools/model_counts.py and the program `counted` call.
#ifdef FASTGAN_COUNT
#include <dlfcn.h>

#include "count_record.h"
#include "modelled.h"

namespace {

using namespace simt::count;

template <size_t n>
std::string list(const std::array<int64_t, n>& values) {
  std::string text = "[";
  for (size_t i = 0; i < n; ++i) text += (i > 0 ? "," : "") + std::to_string(values[i]);
  return text + "]";
}

std::string traffic(const Traffic& t) {
  return "{\"instructions\":" + list(t.instructions) + ",\"requested\":" + std::to_string(t.requested) +
         ",\"needed\":" + std::to_string(t.needed) + ",\"split\":" + std::to_string(t.split) + "}";
}

std::string text_of(const Record& r) {
  std::string text = "{\"name\":\"" + r.name + "\"";
  const auto add = [&](const char* key, const std::string& value) { text += std::string(",\"") + key + "\":" + value; };
  add("l2", std::to_string(r.l2)), add("hbm_read", std::to_string(r.hbm_read));
  add("hbm_written", std::to_string(r.hbm_written)), add("branch", std::to_string(r.branch));
  std::string after;
  for (const size_t one : r.after) after += (after.empty() ? "" : ",") + std::to_string(one);
  add("after", "[" + after + "]");
  if (!r.note.empty()) return text + ",\"note\":" + r.note + "}";
  add("blocks", std::to_string(r.blocks)), add("threads", std::to_string(r.threads));
  add("shared_bytes", std::to_string(r.shared_bytes)), add("cooperative", r.cooperative ? "true" : "false");
  add("cluster", std::to_string(r.cluster));
  add("accesses", list(r.path.accesses)), add("trips", list(r.path.trips)),
      add("shared_trips", list(r.path.shared_trips));
  add("barriers", list(r.path.barriers)), add("collectives", list(r.path.collectives));
  add("atomics", std::to_string(r.path.atomics)), add("fences", std::to_string(r.path.fences));
  add("fills", std::to_string(r.path.fills)), add("steps", std::to_string(r.path.steps));
  add("grid_barriers", std::to_string(r.path.grid_barriers));
  add("cluster_barriers", std::to_string(r.path.cluster_barriers));
  add("cluster_waits", std::to_string(r.path.cluster_waits));
  add("remote_accesses", std::to_string(r.path.remote_accesses));
  add("remote_trips", std::to_string(r.path.remote_trips)), add("remote_bytes", std::to_string(r.remote_bytes));
  add("read", traffic(r.read)), add("written", traffic(r.written)), add("copied", traffic(r.copied));
  add("copies", list(r.copies)), add("wavefronts", list(r.wavefronts)), add("least", list(r.least));
  add("copy_wavefronts", std::to_string(r.copy_wavefronts));
  add("ways", std::to_string(r.ways)), add("shared_accesses", std::to_string(r.shared_accesses));
  add("vectors", std::to_string(r.vectors));
  std::string products;
  for (const auto& [what, times] : r.products)
    products += (products.empty() ? "\"" : ",\"") + what + "\":" + std::to_string(times);
  add("products", "{" + products + "}");
  std::string places;
  for (const void* place : r.places) {
    Dl_info info;
    if (dladdr(place, &info) == 0) continue;
    places += (places.empty() ? "" : ",") +
              std::to_string(static_cast<const char*>(place) - 1 - static_cast<const char*>(info.dli_fbase));
  }
  add("places", "[" + places + "]");
  return text + "}";
}

}  // namespace

#define FASTGAN_EXPORT extern "C" __attribute__((visibility("default")))

// Forgets the launches; the cache too, where `cold`. From now on the bindings see an H100 (its sizes: CUDA C++
// Programming Guide, compute capability 9.0; NVIDIA H100 Tensor Core GPU Architecture, the SXM5's 132 multiprocessors).
FASTGAN_EXPORT void simt_count_start(int cold) {
  simt::modelled = {132, 227 * 1024};
  records.clear();
  branches = {};
  if (cold != 0) cache.clear();
}

// A launch that is none of ours: `note` is JSON. What it reads and writes follows.
FASTGAN_EXPORT void simt_count_note(const char* name, const char* note) {
  Record& to = add_record();
  to.name = name, to.note = note;
}
FASTGAN_EXPORT void simt_count_touch(const void* p, size_t bytes, int writes) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  if (bytes == 0 || records.empty()) return;
  for (uint64_t s = begin / sector_bytes; s <= (begin + bytes - 1) / sector_bytes; ++s) touch(s, writes != 0);
}

// All launches since the start, as JSON; good until the next call.
FASTGAN_EXPORT const char* simt_count_text() {
  static std::string text;
  text = "[";
  for (const Record& r : records) text += (text.size() > 1 ? ",\n" : "") + text_of(r);
  return (text += "]").c_str();
}
#endif
