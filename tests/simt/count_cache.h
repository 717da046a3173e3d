// Of count.cpp: the second-level cache of an H100, 50 MB, as lines of four sectors of 32 bytes, the longest unused of
// which makes place. What is read and not there comes from the device's memory; what was written goes there once it has
// to make place. Of its two partitions, its ways and its own choice of lines nothing is modelled.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace simt::count {

constexpr uint64_t sector_bytes = 32, line_bytes = 128;

class Cache {
 public:
  explicit Cache(size_t bytes) : lines_(bytes / line_bytes) {}

  // Of the sector with this number, in sectors that the device's memory moves: 1 where it was read from there.
  int touch(uint64_t sector, bool writes, uint64_t& written_back) {
    const uint64_t line = sector / (line_bytes / sector_bytes);
    const uint8_t bit = uint8_t(1u << sector % (line_bytes / sector_bytes));
    auto found = index_.find(line);
    if (found == index_.end()) {
      uint32_t place = uint32_t(used_);
      if (used_ < lines_.size()) {
        ++used_;
      } else {
        place = oldest_;
        unlink(place);
        index_.erase(lines_[place].number);
        written_back += uint64_t(__builtin_popcount(lines_[place].dirty));
      }
      lines_[place] = {line, 0, 0, none, none};
      append(place);
      found = index_.emplace(line, place).first;
    } else if (found->second != newest_) {
      unlink(found->second);
      append(found->second);
    }
    Line& there = lines_[found->second];
    const bool is_missing = (there.valid & bit) == 0;
    there.valid |= bit;
    if (writes) there.dirty |= bit;
    return is_missing && !writes ? 1 : 0;
  }

  void clear() {
    index_.clear();
    used_ = 0;
    oldest_ = newest_ = none;
  }

 private:
  static constexpr uint32_t none = ~0u;
  struct Line {
    uint64_t number;
    uint8_t valid, dirty;
    uint32_t older, newer;
  };

  void unlink(uint32_t place) {
    Line& line = lines_[place];
    (line.older != none ? lines_[line.older].newer : oldest_) = line.newer;
    (line.newer != none ? lines_[line.newer].older : newest_) = line.older;
  }
  void append(uint32_t place) {
    lines_[place].older = newest_, lines_[place].newer = none;
    (newest_ != none ? lines_[newest_].newer : oldest_) = place;
    newest_ = place;
  }

  std::vector<Line> lines_;
  std::unordered_map<uint64_t, uint32_t> index_;
  size_t used_ = 0;
  uint32_t oldest_ = none, newest_ = none;
};

}  // namespace simt::count
