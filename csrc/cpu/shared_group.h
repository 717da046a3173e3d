// Processes of one computer that add up in memory which they share: each hands in at its own place, and after a meeting
// all read the places of all. Nothing is sent, so a sum costs what reading it costs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace fastgan::cpu {

class SharedGroup {
 public:
  // Whether this system has what it takes: Linux, since 5.3.
  static bool exists();

  // The memory of `size` processes, with `bytes` for each to hand in. Made where `path` is empty; else that of another
  // process, by its path() and token. Throws std::runtime_error where there is none of that kind.
  SharedGroup(const std::string& path, uint64_t token, int rank, int size, size_t bytes);
  ~SharedGroup();
  SharedGroup(const SharedGroup&) = delete;
  SharedGroup& operator=(const SharedGroup&) = delete;

  // By which other processes open it while this one lives.
  std::string path() const;
  // After all have opened it: from here on a process that ends is noticed.
  void watch();

  // Asked every now and then by one that waits; may throw.
  std::function<void()> interrupted;
  // Seconds that one waits for another.
  double patience = 1800;

  int rank() const { return rank_; }
  int size() const { return size_; }
  size_t bytes() const { return bytes_; }

  // Where a process hands in for the next meeting. There are two places, in turns: what one meeting was of stays until
  // its process comes to the one after.
  template <class T>
  T* place(int rank) const {
    return reinterpret_cast<T*>(places_ + (rank * 2 + (turn_ + 1) % 2) * bytes_);
  }
  // Elements between the places of one process and the next.
  template <class T>
  int64_t stride() const {
    return int64_t(2 * bytes_ / sizeof(T));
  }

  // Until all processes are here. Throws std::runtime_error where one has ended, failed or does not come; no meeting
  // comes about after that.
  void meet();
  // Tells those who wait that this process does not come.
  void fail() noexcept;

  // The largest of all processes' values, each in its place; as many on every one.
  std::vector<int64_t> most(const std::vector<int64_t>& values);
  // The sums over all processes, in the order of their ranks, in the place of n values.
  template <class T>
  void add_up(T* values, int64_t n);

 private:
  struct Seat;
  struct Head;

  Seat& seat(int rank) const;
  // Throws where one that has not come to this turn never will.
  void look(uint64_t turn, double seconds);
  void unmap() noexcept;

  const int rank_, size_;
  const size_t bytes_;
  size_t mapped_ = 0;
  int file_ = -1;
  char* memory_ = nullptr;
  char* places_ = nullptr;
  uint64_t turn_ = 0;
  std::vector<int> processes_;  // to be asked whether they have ended
};

}  // namespace fastgan::cpu
