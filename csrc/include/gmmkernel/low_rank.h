// Exact moment matching: the small sums over components and directions, of which there are few beside the elements.
// gmmkernel/backends/reference/low_rank.py is the specification. Every sum is a chain of fmas in the order of its
// terms.
#pragma once

#include "gmmkernel/density.h"

namespace gmmkernel {

// Whether variance is removed in directions: otherwise the step is that of a mixture without.
template <class T>
GMM_INLINE bool removes_in_directions(const Row<T>& row, int64_t directions) {
  return directions > 0 && row.offset != 0 && row.sigma != 0;
}

// start + a[0] b[0] + a[stride] b[1] + ...
template <class T>
GMM_INLINE T chain(const T* a, int64_t stride, const T* b, int64_t count, T start) {
  for (int64_t i = 0; i < count; ++i) start = OneLane<T>::Lanes::fma(a[i * stride], b[i], start);
  return start;
}

// u_r: how far the noise goes along direction r, by its factor, from the noise's projections on the offsets.
template <class T>
GMM_INLINE T pull_along(const T* basis, const T* projections, int64_t components, T factor) {
  return OneLane<T>::Lanes::mul(factor, chain<T>(basis, 1, projections, components, 0));
}

// y_l: what offset l is multiplied with; `basis` begins with its coefficient in direction 0, `own` is the row's weight
// for the component drawn and 0 for the others.
template <class T>
GMM_INLINE T offset_weight(const T* basis, const T* pulls, int64_t components, int64_t directions, T own) {
  return chain<T>(basis, components, pulls, directions, own);
}

// e_r, from the energies of the components.
template <class T>
GMM_INLINE T energy_along(const T* basis, const T* energies, int64_t components) {
  using L = typename OneLane<T>::Lanes;
  T e = 0;
  for (int64_t k = 0; k < components; ++k) e = L::fma(basis[k], L::sub(energies[k], energies[0]), e);
  return e;
}

// C_k.
template <class T>
GMM_INLINE T penalty(const T* slopes, const T* shifts, const T* along, int64_t directions, T half_logdet) {
  using L = typename OneLane<T>::Lanes;
  for (int64_t r = 0; r < directions; ++r) {
    const T h = L::fma(slopes[r], along[r], shifts[r]);
    half_logdet = L::fma(h, h, half_logdet);
  }
  return half_logdet;
}

}  // namespace gmmkernel
