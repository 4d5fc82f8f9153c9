// The bodies of the kernels of training on the host: what launch_add_noise, launch_skip_loss and
// launch_skip_loss_backward run.
#pragma once

#include "cuda/training_body.h"
#include "emulated_backward.h"

namespace gmmkernel {

// Call body(dtype, T) with the type that the launch chooses a kernel for.
template <int32_t value>
struct Dtype {
  static constexpr int32_t dtype = value;
};

template <class Arguments, class Body>
void with_kernel(const Arguments& arguments, int32_t dtype, Body&& body) {
  if (dtype == GMM_FLOAT64) {
    body(Dtype<any_dtype>(), double());
  } else if (!is_common(arguments)) {
    body(Dtype<any_dtype>(), float());
  } else if (dtype == GMM_BFLOAT16) {
    body(Dtype<GMM_BFLOAT16>(), float());
  } else if (dtype == GMM_FLOAT16) {
    body(Dtype<GMM_FLOAT16>(), float());
  } else {
    body(Dtype<GMM_FLOAT32>(), float());
  }
}

inline void emulate_add_noise(const gmm_add_noise_arguments& a, int multiprocessors) {
  const gmm_training& t = a.training;
  if (t.batch == 0 || t.elements == 0) return;
  const Tiling tiling = tiling_of(t.batch, t.elements, elements_per_pass(a, a.sample.dtype), multiprocessors);
  with_kernel(a, a.sample.dtype, [&](auto kernel, auto number) {
    for_blocks(t.batch, tiling, [&](const Place& place) {
      auto tile = uncleared<TrainingTile<decltype(number)>>();
      gather<kernel.dtype>(a, tiling, place, tile);
      for_threads(tiling, [&](uint32_t thread) { add_training_noise<kernel.dtype>(a, tile, thread); });
    });
  });
}

template <int32_t dtype, class T>
void emulate_loss(const gmm_skip_loss_arguments& a) {
  const gmm_training& t = a.training;
  const SumRows rows = sum_rows(a.workspace, t.batch, t.elements, 1);
  const Tiling tiling = {t.elements, loss_tiles * sum_tile};
  if (t.elements > 0) {
    for_blocks(t.batch, tiling, [&](const Place& place) {
      auto tile = uncleared<TrainingTile<T>>();
      auto sums = uncleared<LossSums<T>>();
      gather<dtype>(a, tiling, place, tile);
      if (tile.kind == TrainingKind::invalid) {
        for_threads(
            [&](uint32_t thread) { fill_with_nan<dtype, T>(tile.result, a.residual.dtype, tile.count, thread); });
        return;
      }
      for_threads([&](uint32_t thread) { sum_loss_of_threads<dtype>(a, tile, thread, sums); });
      for_threads([&](uint32_t thread) { sum_loss_to_sixteenths(thread, sums); });
      for_threads([&](uint32_t thread) { sum_loss_to_classes(thread, sums); });
      for_threads([&](uint32_t thread) {
        Place of_thread = place;
        of_thread.thread = thread;
        write_loss_sums(rows, of_thread, sums);
      });
    });
  }
  emulate_sums<T>(rows);
  for (int64_t sample = 0; sample < t.batch + 3; ++sample) finish_loss<T>(a, rows, sample);
}

inline void emulate_skip_loss(const gmm_skip_loss_arguments& a) {
  with_kernel(a, a.model_output.dtype,
              [&](auto kernel, auto number) { emulate_loss<kernel.dtype, decltype(number)>(a); });
}

inline void emulate_scale_residual(const gmm_scale_residual_arguments& a, int multiprocessors) {
  const gmm_training& t = a.training;
  if (t.batch == 0 || t.elements == 0) return;
  const Tiling tiling = tiling_of(t.batch, t.elements, 4 * block_threads, multiprocessors);
  for_blocks(t.batch, tiling, [&](Place place) {
    for (place.thread = 0; place.thread < tiling.threads; ++place.thread) {
      if (a.residual.dtype == GMM_FLOAT64) {
        scale_residual<double>(a, tiling, place);
      } else {
        scale_residual<float>(a, tiling, place);
      }
    }
  });
}

inline void emulate_skip_loss_backward(const gmm_skip_loss_backward_arguments& b, int multiprocessors) {
  const gmm_training& t = b.of.training;
  if (t.batch == 0 || t.elements == 0) return;
  const Tiling tiling = tiling_of(t.batch, t.elements, 4 * block_threads, multiprocessors);
  with_kernel(b, b.of.model_output.dtype, [&](auto kernel, auto number) {
    for_blocks(t.batch, tiling, [&](const Place& place) {
      auto tile = uncleared<TrainingTile<decltype(number)>>();
      gather<kernel.dtype>(b, tiling, place, tile);
      for_threads(tiling, [&](uint32_t thread) { skip_loss_backward<kernel.dtype>(b, tile, thread); });
    });
  });
}

}  // namespace gmmkernel
