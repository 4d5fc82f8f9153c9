// Where the C interface's structs say that things lie, for host and device.
#pragma once

#include "gmmkernel/config.h"
#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

GMM_INLINE int64_t index_at(const gmm_index& index, int64_t sample) {
  return index.data == nullptr ? index.value : index.data[sample * index.stride];
}

GMM_INLINE int64_t size_of(int32_t dtype) { return dtype == GMM_FLOAT64 ? 8 : dtype == GMM_FLOAT32 ? 4 : 2; }

// Whether an index is one of the noise counter's steps.
GMM_INLINE bool is_step(int64_t step) { return step >= 0 && step <= 0xFFFFFFFF; }

// A table with one row serves all.
GMM_INLINE int64_t table_row(int64_t rows, int64_t row) { return rows == 1 ? 0 : row; }

}  // namespace gmmkernel
