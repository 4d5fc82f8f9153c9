// How a launch is divided: a tile is a run of elements of one sample, one thread block each.
#pragma once

#include "common/layout.h"

namespace gmmkernel {

constexpr int block_threads = 256;
constexpr uint32_t smallest_block = 64;  // threads of a block in a launch that leaves multiprocessors idle
constexpr int64_t largest_grid_y = 65535;

// The grid is (tiles of a sample, samples mod 65535, samples / 65535). A tile has a power of two of elements, far below
// 2^32, so that inside it 32-bit offsets do and no Philox block number carries into its upper word.
struct Tiling {
  int64_t elements;
  uint32_t tile_elements;
  uint32_t threads = block_threads;
};

// Which tile of which sample a block works on, and which of its threads this is.
struct Place {
  uint32_t tile, y, z;
  uint32_t thread;

  GMM_METHOD int64_t sample() const { return z * largest_grid_y + y; }
  GMM_METHOD int64_t first(const Tiling& tiling) const { return static_cast<int64_t>(tile) * tiling.tile_elements; }
  GMM_METHOD uint32_t count(const Tiling& tiling) const {
    const int64_t left = tiling.elements - first(tiling);
    return left < tiling.tile_elements ? static_cast<uint32_t>(left) : tiling.tile_elements;
  }
};

GMM_INLINE bool is_aligned(const void* data, uint32_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

// ---- decided on the host, once a launch ----

// As many elements a thread as leave each multiprocessor two rounds of blocks, 64 at most: a thread's first element
// costs about as much as ten more. What is too little for that goes to smaller blocks as long as each has a
// multiprocessor to itself; their threads have four elements, or every other one eight.
inline Tiling tiling_of(int64_t batch, int64_t elements, uint32_t per_pass, int multiprocessors) {
  const auto blocks = [&](uint32_t tile) { return batch * ((elements + tile - 1) / tile); };
  const int64_t wanted = static_cast<int64_t>(multiprocessors) * 8;
  uint32_t tile = 64 * block_threads;
  while (tile > per_pass && blocks(tile) < wanted) tile /= 2;
  while (tile > 4 * smallest_block && blocks(tile / 2) <= multiprocessors) tile /= 2;
  return {elements, tile, tile / 4 < block_threads ? tile / 4 : block_threads};
}

// At least one: samples without elements have components all the same.
inline int64_t tiles_of(const Tiling& tiling) {
  return tiling.elements == 0 ? 1 : (tiling.elements + tiling.tile_elements - 1) / tiling.tile_elements;
}

inline bool is_vector(const void* data, int64_t batch, int64_t batch_stride, int32_t dtype) {
  return is_aligned(data, 16) && (batch == 1 || batch_stride * size_of(dtype) % 16 == 0);
}

// Whether the noise of every sample begins with a Philox block, and its blocks' numbers do not carry into their upper
// word inside a tile.
inline bool begins_with_block(const gmm_index& first_element, int64_t elements) {
  const int64_t largest = int64_t{1} << 34;
  return first_element.data == nullptr && first_element.value % 4 == 0 && first_element.value < largest &&
         elements < largest - first_element.value;
}

// Two types known when compiling: the sample's and the model output's.
template <int32_t sample, int32_t model_output>
struct Types {};

// Calls `visit` with the types, of which none is float64.
template <class Visit>
auto with_types(int32_t sample, int32_t model_output, Visit&& visit) {
  if (sample == GMM_BFLOAT16) {
    return model_output == GMM_BFLOAT16 ? visit(Types<GMM_BFLOAT16, GMM_BFLOAT16>())
                                        : visit(Types<GMM_BFLOAT16, GMM_FLOAT32>());
  }
  if (sample == GMM_FLOAT16) {
    return model_output == GMM_FLOAT16 ? visit(Types<GMM_FLOAT16, GMM_FLOAT16>())
                                       : visit(Types<GMM_FLOAT16, GMM_FLOAT32>());
  }
  if (model_output == GMM_BFLOAT16) return visit(Types<GMM_FLOAT32, GMM_BFLOAT16>());
  if (model_output == GMM_FLOAT16) return visit(Types<GMM_FLOAT32, GMM_FLOAT16>());
  return visit(Types<GMM_FLOAT32, GMM_FLOAT32>());
}

// Whether types are those of sample and model output alone, none of them float64, and noise begins with a Philox block:
// what a kernel of known types takes.
inline bool is_typed(const gmm_step_arguments& a) {
  if (a.sample.dtype == GMM_FLOAT64 || !begins_with_block(a.first_element, a.elements)) return false;
  const gmm_input& uncond = a.model_output_uncond;
  if (uncond.data != nullptr && uncond.dtype != a.model_output.dtype) return false;
  for (const gmm_input& stored : a.history) {
    if (stored.data != nullptr && stored.dtype != a.sample.dtype) return false;
  }
  return true;
}

// Whether such a step is the plainest: one type, without history, prediction or guidance.
inline bool is_plain(const gmm_step_arguments& a) {
  for (const gmm_input& stored : a.history) {
    if (stored.data != nullptr) return false;
  }
  return a.model_output.dtype == a.sample.dtype && a.model_output_uncond.data == nullptr &&
         a.prediction_kind == GMM_PREDICTION_NONE;
}

// The same of gradients, each of its own tensor's type.
inline bool is_typed(const gmm_step_backward_arguments& b) {
  const gmm_step_arguments& a = b.step;
  const auto as = [](const gmm_output& grad, int32_t dtype) { return grad.data == nullptr || grad.dtype == dtype; };
  bool typed = is_typed(a) && as(b.grad_sample, a.sample.dtype) && as(b.grad_model_output, a.model_output.dtype) &&
               as(b.grad_model_output_uncond, a.model_output.dtype);
  for (const gmm_output& stored : b.grad_history) typed = typed && as(stored, a.sample.dtype);
  return typed;
}

inline bool is_plain(const gmm_step_backward_arguments& b) {
  const gmm_step_arguments& a = b.step;
  for (const gmm_output& stored : b.grad_history) {
    if (stored.data != nullptr) return false;
  }
  return a.model_output.dtype == a.sample.dtype && a.model_output_uncond.data == nullptr &&
         b.grad_prediction.data == nullptr;
}

// Whether training tensors that are there have one type, not float64, and can be read four elements at a time.
template <class... Tensors>
inline bool is_common_training(const gmm_training& t, int32_t dtype, const Tensors&... tensors) {
  const auto common = [&](const auto& tensor) {
    return tensor.data == nullptr ||
           (tensor.dtype == dtype && is_vector(tensor.data, t.batch, tensor.batch_stride, dtype));
  };
  return dtype != GMM_FLOAT64 && t.elements * size_of(dtype) % 16 == 0 && (common(tensors) && ...);
}

inline bool is_common(const gmm_add_noise_arguments& a) {
  return is_common_training(a.training, a.sample.dtype, a.sample, a.result, a.noise) &&
         begins_with_block(a.first_element, a.training.elements);
}

inline bool is_common(const gmm_skip_loss_arguments& a) {
  return is_common_training(a.training, a.model_output.dtype, a.model_output, a.sample, a.residual);
}

inline bool is_common(const gmm_skip_loss_backward_arguments& b) {
  return is_common_training(b.of.training, b.of.model_output.dtype, b.of.model_output, b.of.sample, b.grad_model_output,
                            b.grad_sample);
}

// Whether noise goes out in whole vectors of 16 bytes.
inline bool is_common(const gmm_normal_arguments& a) {
  const int32_t dtype = a.result.dtype;
  return dtype != GMM_FLOAT64 && is_vector(a.result.data, a.batch, a.result.batch_stride, dtype) &&
         a.elements * size_of(dtype) % 16 == 0 && begins_with_block(a.first_element, a.elements);
}

// Elements that a block's threads take at once.
template <class Arguments>
uint32_t elements_per_pass(const Arguments& of, const gmm_step_arguments& a) {
  const bool eight = is_typed(of) && !(is_plain(of) && a.sample.dtype == GMM_FLOAT32);
  return block_threads * (eight ? 8 : 4);
}

template <class Arguments>
uint32_t elements_per_pass(const Arguments& a, int32_t dtype) {
  return block_threads * (is_common(a) && size_of(dtype) == 2 ? 8 : 4);
}

// Whether there is a gradient to write for each sample.
inline bool writes_samples(const gmm_step_backward_arguments& b) {
  bool wanted = b.grad_sample.data != nullptr || b.grad_model_output.data != nullptr ||
                b.grad_model_output_uncond.data != nullptr;
  for (const gmm_output& stored : b.grad_history) wanted = wanted || stored.data != nullptr;
  return wanted;
}

constexpr uint32_t sum_tile = 1024;

// The sums of every sample's tiles, [batch][entries][columns], and how many tiles there are; once summed, the first row
// of a sample is the whole sample's.
struct SumRows {
  void* data;
  int64_t batch, entries, columns, tiles;
};

inline SumRows sum_rows(void* data, int64_t batch, int64_t elements, int64_t columns) {
  const int64_t entries = GMM_SUM_ENTRIES(elements);
  return {data, batch, entries, columns, entries - 1};
}

inline SumRows sum_rows(void* data, const gmm_step_arguments& a, int64_t columns) {
  return sum_rows(data, a.batch, a.elements, columns);
}

// A level of the tree over a sample's tiles: `count` rows, `stride` apart; a block sums 16 columns of a tile of rows.
struct SumLevel {
  int64_t count, stride;
};

inline Tiling tiling_of(const SumLevel& level) { return {level.count, sum_tile}; }

inline SumLevel above(const SumLevel& level) { return {tiles_of(tiling_of(level)), level.stride * sum_tile}; }

inline uint32_t column_blocks(const SumRows& rows) { return static_cast<uint32_t>((rows.columns + 15) / 16); }

}  // namespace gmmkernel
