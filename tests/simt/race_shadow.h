// Of race.cpp: who accessed each word of memory last.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>

#include "race.h"

namespace simt::race {

constexpr uint32_t never = 0;
// Launches and barriers of the grid are counted: what was in another phase is ordered with all of this one.
inline uint32_t phase = never;

struct Epoch {
  uint32_t phase = never;
  uint32_t block = 0;
  uint32_t clock = 0;
  uint16_t thread = 0;
  Access kind = Access::read;
};

// Accesses by threads of a block whose clocks were alike.
struct Group {
  uint32_t block, clock;
  const void* from;
  Group* next;
  std::bitset<1024> threads;
};
struct Groups {
  uint32_t phase = never;
  Group* first = nullptr;
};

// Of a word of four bytes, or of a byte where a smaller access came.
struct Cell {
  Epoch write, read;
  const void* write_from = nullptr;
  const void* read_from = nullptr;
  Groups readers;  // in place of `read`, once there are two that nothing orders
  Groups atomics;
  Cell* bytes = nullptr;  // of four, good in `bytes_phase`
  uint32_t bytes_phase = never;
};

constexpr size_t page_bytes = 4096;
struct Page {
  Cell words[page_bytes / 4];
};

class Shadow {
 public:
  Cell& word(uintptr_t address) {
    const uintptr_t number = address / page_bytes;
    auto& [cached, page] = cache_[number % cache_.size()];
    if (cached != number || page == nullptr) {
      auto& owned = pages_[number];
      if (owned == nullptr) owned = std::make_unique<Page>();
      cached = number, page = owned.get();
    }
    return page->words[address % page_bytes / 4];
  }

 private:
  std::array<std::pair<uintptr_t, Page*>, 1024> cache_{};
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
};

inline Shadow shadow;
inline std::deque<Group> pool;  // of this launch
inline std::deque<std::array<Cell, 4>> split_words;

inline void add(Groups& groups, const Group& group) {
  if (groups.phase != phase) groups = {phase, nullptr};
  Group& added = pool.emplace_back(group);
  added.next = groups.first;
  groups.first = &added;
}

// The cells of a word's bytes, which begin as the word's.
inline Cell* split(Cell& word) {
  if (word.bytes == nullptr) word.bytes = split_words.emplace_back().data();
  if (word.bytes_phase != phase)
    for (int i = 0; i < 4; ++i) {
      Cell& byte = word.bytes[i];
      byte.write = word.write, byte.read = word.read;
      byte.write_from = word.write_from, byte.read_from = word.read_from;
      for (Groups Cell::* groups : {&Cell::readers, &Cell::atomics}) {
        byte.*groups = {};
        if ((word.*groups).phase != phase) continue;
        for (const Group* g = (word.*groups).first; g != nullptr; g = g->next) add(byte.*groups, *g);
      }
    }
  word.bytes_phase = phase;
  return word.bytes;
}

}  // namespace simt::race
