// A team of the standard library's threads, for builds without OpenMP: Apple's clang has none.
#pragma once

namespace fastgan::cpu {

// The number of threads to use at most is what this function says: PyTorch's number, from the bindings. Before it is
// set, one for each core.
void set_most_threads(int (*most)());
int most_threads();

// Whether the caller is one of a team's threads, at work.
bool is_in_team();

// Calls work(argument, thread, threads) in that many threads at once, the caller being number 0, and returns true when
// all are done; or calls nothing and returns false where the team has other work, or cannot have so many threads.
bool run_team(int threads, void (*work)(const void* argument, int thread, int threads), const void* argument);

}  // namespace fastgan::cpu
