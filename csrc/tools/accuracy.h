// What the programs that measure errors share: sums of errors, work on several threads, and numbers as arguments.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

// Errors of one quantity: in units in the last place (ulp) of the true value as a Number, and relative to it
// where it is not subnormal.
template <class Number>
struct ErrorsOf {
  double worst_ulp = 0, sum_ulp = 0, worst_relative = 0;
  uint32_t worst_words[2] = {0, 0};
  uint64_t count = 0;
  Number smallest = INFINITY, largest = 0;  // of the absolute values

  void add(Number value, long double truth, uint32_t word, uint32_t second_word = 0) {
    const long double error = std::fabs(value - truth), magnitude = std::fabs(truth);
    // Subnormals have the smallest normals' ulp.
    const int exponent = std::max(std::ilogb(magnitude), std::numeric_limits<Number>::min_exponent - 1);
    const double ulp = static_cast<double>(std::ldexp(error, std::numeric_limits<Number>::digits - 1 - exponent));
    if (ulp > worst_ulp) {
      worst_ulp = ulp;
      worst_words[0] = word;
      worst_words[1] = second_word;
    }
    sum_ulp += ulp;
    if (magnitude >= std::numeric_limits<Number>::min()) {
      worst_relative = std::max(worst_relative, static_cast<double>(error / magnitude));
    }
    smallest = std::min(smallest, std::fabs(value));
    largest = std::max(largest, std::fabs(value));
    ++count;
  }

  void merge(const ErrorsOf& other) {
    if (other.worst_ulp > worst_ulp) {
      worst_ulp = other.worst_ulp;
      std::copy(other.worst_words, other.worst_words + 2, worst_words);
    }
    sum_ulp += other.sum_ulp;
    worst_relative = std::max(worst_relative, other.worst_relative);
    smallest = std::min(smallest, other.smallest);
    largest = std::max(largest, other.largest);
    count += other.count;
  }

  static void print_header(const char* relative) {
    std::printf("%-7s %12s  %9s  %-21s  %8s  %10s  %-12s %-12s\n", "", "values", "worst ulp", "at words", "mean ulp",
                relative, "smallest", "largest");
  }

  void print(const char* name) const {
    std::printf("%-7s %12llu  %9.4f  0x%08x 0x%08x  %8.4f  %10.4f  %-12.6g %-12.8g\n", name,
                static_cast<unsigned long long>(count), worst_ulp, worst_words[0], worst_words[1],
                sum_ulp / static_cast<double>(count), std::ldexp(worst_relative, std::numeric_limits<Number>::digits),
                static_cast<double>(smallest), static_cast<double>(largest));
  }
};

inline int all_threads() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

// Calls body(first, last, result of this thread) over pieces of [0, count) and merges the results.
template <class Result>
Result in_parallel(const char* name, uint64_t count, int threads,
                   const std::function<void(uint64_t, uint64_t, Result&)>& body) {
  constexpr uint64_t piece = 1 << 18;
  std::atomic<uint64_t> next{0};
  std::atomic<int> running{threads};
  Result total;
  std::mutex mutex;
  std::vector<std::thread> workers;
  for (int i = 0; i < threads; ++i) {
    workers.emplace_back([&] {
      Result mine;
      for (uint64_t first; (first = next.fetch_add(piece)) < count;) body(first, std::min(first + piece, count), mine);
      const std::lock_guard<std::mutex> lock(mutex);
      total.merge(mine);
      --running;
    });
  }
  const auto start = std::chrono::steady_clock::now();
  while (running > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const double done = static_cast<double>(std::min(next.load(), count)) / static_cast<double>(count);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "\r%-7s %5.1f%%  %5.0f s, about %.0f s left   ", name, 100 * done, seconds,
                 seconds / done - seconds);
  }
  std::fputc('\n', stderr);
  for (std::thread& worker : workers) worker.join();
  return total;
}

inline uint64_t number(const char* text, uint64_t low, uint64_t high) {
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (*text == '\0' || *end != '\0' || value < low || value > high) {
    std::fprintf(stderr, "expected a number from %llu to %llu, got '%s'\n", static_cast<unsigned long long>(low),
                 static_cast<unsigned long long>(high), text);
    std::exit(2);
  }
  return value;
}
