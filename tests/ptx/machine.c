/* What NumPy has no function for: fused multiply-adds, and memory at addresses, one for each thread. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Of each operand the elements lie `step` apart: 1, or 0 where all threads have the same. */
#define FMA(name, type, function)                                                                             \
  void name(const type* a, long a_step, const type* b, long b_step, const type* c, long c_step, type* result, \
            long count) {                                                                                     \
    for (long i = 0; i < count; i++) result[i] = function(a[i * a_step], b[i * b_step], c[i * c_step]);       \
  }
FMA(fma_f32, float, fmaf)
FMA(fma_f64, double, fma)

/* Whether bytes lie in one of the ranges: pairs of begin and end, sorted, apart from each other. */
static int is_inside(const uint64_t* ranges, long count, uint64_t address, uint64_t size) {
  long first = 0, last = count;
  while (first < last) {
    const long middle = (first + last) / 2;
    if (ranges[2 * middle] <= address)
      first = middle + 1;
    else
      last = middle;
  }
  return first > 0 && address + size <= ranges[2 * first - 1];
}

/* Move `parts` words of `width` bytes between each thread's address and words[part][thread], for those in the mask.
   Returns -1, or the first thread whose access is misaligned (2 thread) or out of the ranges (2 thread + 1). */
static long move(int store, const uint64_t* addresses, const uint8_t* mask, long threads, long width, long parts,
                 char* words, const uint64_t* ranges, long count) {
  const uint64_t size = (uint64_t)(width * parts);
  for (long i = 0; i < threads; i++) {
    if (!mask[i]) continue;
    char* memory = (char*)(uintptr_t)addresses[i];
    if (addresses[i] % size) return 2 * i;
    if (!is_inside(ranges, count, addresses[i], size)) return 2 * i + 1;
    for (long part = 0; part < parts; part++) {
      char* word = words + (part * threads + i) * width;
      if (store)
        memcpy(memory + part * width, word, (size_t)width);
      else
        memcpy(word, memory + part * width, (size_t)width);
    }
  }
  return -1;
}

long load(const uint64_t* addresses, const uint8_t* mask, long threads, long width, long parts, char* words,
          const uint64_t* ranges, long count) {
  return move(0, addresses, mask, threads, width, parts, words, ranges, count);
}

long store(const uint64_t* addresses, const uint8_t* mask, long threads, long width, long parts, char* words,
           const uint64_t* ranges, long count) {
  return move(1, addresses, mask, threads, width, parts, words, ranges, count);
}
