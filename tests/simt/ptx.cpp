#include "engine.h"
#include "simt_ptx.h"

namespace simt {

void check_aligned(const void* p, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
    fault(std::string(what) + " is at an address that is no multiple of " + std::to_string(alignment));
}

// Until a copy is waited for, its target holds poison: who reads too early, or still reads what was there, sees it.
void start_copy(void* shared, const void* global, int bytes, int size) {
  check_aligned(shared, size, "the target of an asynchronous copy");
  check_aligned(global, size, "the source of an asynchronous copy");
  if (!is_shared(shared, size)) fault("an asynchronous copy goes outside the block's shared memory");
  if (bytes < 0 || bytes > size)
    fault("an asynchronous copy reads " + std::to_string(bytes) + " bytes of " + std::to_string(size));
  const void* const from = __builtin_return_address(0);
  race::access(global, bytes, race::Access::read, from);
  race::access(shared, size, race::Access::copy, from);
  count::copy(global, bytes, size, from);
  const InModel model;
  std::memset(shared, poison, size);
  current->copies->list.push_back({shared, global, bytes, size, from});
}

void close_group() {
  const InModel model;
  current->copies->groups.push_back(current->copies->list.size());
}

void finish_groups(size_t pending) {
  Copies& copies = *current->copies;
  if (copies.groups.size() <= pending) return;
  const size_t done = copies.groups[copies.groups.size() - pending - 1];
  count::wait(done, pending);
  for (size_t i = 0; i < done; ++i) {
    const Copies::Copy& copy = copies.list[i];
    race::access(copy.source, copy.bytes, race::Access::read, copy.from);
    race::access(copy.target, copy.size, race::Access::copied, copy.from);
    std::memcpy(copy.target, copy.source, copy.bytes);
    std::memset(static_cast<unsigned char*>(copy.target) + copy.bytes, 0, copy.size - copy.bytes);
  }
  const InModel model;
  copies.list.erase(copies.list.begin(), copies.list.begin() + done);
  copies.groups.erase(copies.groups.begin(), copies.groups.end() - pending);
  for (size_t& group : copies.groups) group -= done;
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
  check_aligned(row, 16, "a row of ldmatrix");
  if (!is_shared(row, 16)) fault("a row of ldmatrix is outside the block's shared memory");
  struct Rows {
    const void* row;
    uint32_t* r;
    bool transposed;
    const void* read[4][2];  // the elements that the lane gets
  } mine{row, r, transposed, {}};
  meet_warp(
      transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", 0xffffffffu, &mine,
      [](void* const* arguments, unsigned) {
        for (int l = 0; l < 32; ++l) {
          Rows& out = *static_cast<Rows*>(arguments[l]);
          const int group = l / 4, t = l % 4;
          for (int matrix = 0; matrix < 4; ++matrix) {
            const auto element = [&](int i, int j, const void*& read) {
              uint16_t bits;
              read = static_cast<const uint16_t*>(static_cast<Rows*>(arguments[matrix * 8 + i])->row) + j;
              std::memcpy(&bits, read, sizeof bits);
              return uint32_t{bits};
            };
            auto& read = out.read[matrix];
            const bool tr = out.transposed;
            const uint32_t low = tr ? element(2 * t, group, read[0]) : element(group, 2 * t, read[0]);
            const uint32_t high = tr ? element(2 * t + 1, group, read[1]) : element(group, 2 * t + 1, read[1]);
            out.r[matrix] = low | high << 16;
          }
        }
      },
      site);
  for (const auto& [low, high] : mine.read) {
    const bool one = static_cast<const uint16_t*>(low) + 1 == high;
    race::access(low, one ? 4 : 2, race::Access::read, __builtin_return_address(0));
    if (!one) race::access(high, 2, race::Access::read, __builtin_return_address(0));
  }
}

}  // namespace simt
