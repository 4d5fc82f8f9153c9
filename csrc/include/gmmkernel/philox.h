// Philox4x32-10 (Salmon et al. 2011) over lanes: one block, four words, per 32-bit lane.
#pragma once

#include "gmmkernel/config.h"

namespace gmmkernel {

constexpr int philox_rounds = 10;

// Purposes of a draw, the last word of the counter; gmmkernel/backends/constants.py names the same values.
enum class Stream : uint32_t {
  transition = 0,
  component = 1,
  initial = 2,
  training = 3,
  training_skip = 4,
  offsets = 5,
};

// The key of every round, from a 64-bit seed.
struct PhiloxKeys {
  uint32_t low[philox_rounds];
  uint32_t high[philox_rounds];
};

GMM_INLINE PhiloxKeys philox_keys(uint64_t seed) {
  PhiloxKeys keys;
  uint32_t low = static_cast<uint32_t>(seed);
  uint32_t high = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < philox_rounds; ++round) {
    keys.low[round] = low;
    keys.high[round] = high;
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }
  return keys;
}

// Replace the four counter words by the four random words.
template <class Lanes>
GMM_INLINE void philox(const PhiloxKeys& keys, typename Lanes::wide (&word)[4]) {
  GMM_UNROLL(10)
  for (int round = 0; round < philox_rounds; ++round) {
    const typename Lanes::product product0 = Lanes::multiply_wide(word[0], 0xD2511F53);
    const typename Lanes::product product1 = Lanes::multiply_wide(word[2], 0xCD9E8D57);
    word[0] = Lanes::xor3(Lanes::high(product1), word[1], keys.low[round]);
    word[1] = Lanes::low(product1);
    word[2] = Lanes::xor3(Lanes::high(product0), word[3], keys.high[round]);
    word[3] = Lanes::low(product0);
  }
}

// Random words of `Lanes::width` consecutive blocks, the first a multiple of the width; counter (block, step, stream).
// Which block a lane holds is the lanes' choice (`block_counters`), undone by `Lanes::interleave` where it matters.
template <class Lanes>
GMM_INLINE void random_words(const PhiloxKeys& keys, uint64_t block, uint32_t step, Stream stream,
                             typename Lanes::u32 (&words)[4]) {
  typename Lanes::wide counter[4] = {
      Lanes::block_counters(static_cast<uint32_t>(block)),
      Lanes::broadcast(static_cast<uint32_t>(block >> 32)),
      Lanes::broadcast(step),
      Lanes::broadcast(static_cast<uint32_t>(stream)),
  };
  philox<Lanes>(keys, counter);
  for (int i = 0; i < 4; ++i) words[i] = Lanes::words(counter[i]);
}

}  // namespace gmmkernel
