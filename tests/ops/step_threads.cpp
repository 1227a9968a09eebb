// Prints what the crew of a step becomes, and runs a barrier on more threads than there are cores: see the test beside.
#include "../../csrc/cpu/step_threads.h"

#include <cstdio>
#include <vector>

using namespace quamba::cpu;
using namespace std::chrono_literals;

// One step of at most that many threads, of which one is late as long as more than `there` take part: its threads.
int step(StepCrew& crew, int most, int there) {
  const int threads = crew.next(most);
  crew.took(threads, 1ms, threads > there ? (threads - 1) * 900us : 0us);
  return threads;
}

// Steps of four threads; prints the size of each crew.
void steps(StepCrew& crew, int there, int count) {
  for (int i = 0; i < count; ++i) std::printf("%d", step(crew, 4, there));
  std::printf("\n");
}

int main() {
  StepCrew crew;
  steps(crew, 4, 5);
  steps(crew, 3, 24);
  steps(crew, 4, 24);
  steps(crew, 1, 4);
  std::printf("%d\n", crew.next(1));

  StepCrew large;
  for (int i = 0; i < 3000; ++i) step(large, 16, 1);  // other load for long
  int until = 1;
  while (step(large, 16, 16) < 16) ++until;
  std::printf("%d\n", until);

  const int threads = 8, rounds = 2000;
  StepBarrier barrier;
  std::vector<std::vector<int>> seen(threads, std::vector<int>(rounds));
  std::atomic<int> arrived{0};
  std::vector<std::thread> crowd;
  for (int index = 0; index < threads; ++index)
    crowd.emplace_back([&, index] {
      ReadAhead none;
      for (int round = 0; round < rounds; ++round) {
        if (index == 0 && round % 500 == 1) std::this_thread::sleep_for(2ms);
        arrived.fetch_add(1);
        barrier.wait(threads, none);
        seen[index][round] = arrived.load();
        barrier.wait(threads, none);
      }
    });
  for (std::thread& thread : crowd) thread.join();
  bool all = true;
  for (const auto& rounds_of : seen)
    for (int round = 0; round < rounds; ++round) all &= rounds_of[round] == threads * (round + 1);
  std::printf("%s %s\n", all ? "all" : "some", barrier.slept() > 0ns ? "slept" : "awake");
}
