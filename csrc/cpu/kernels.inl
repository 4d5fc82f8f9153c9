// The CPU loops, compiled once for each instruction set by the file that includes this one and names GMM_LANES.
//
// Everything is internal to that file, and nothing from the standard library is called: an inline function compiled
// here for AVX-512 must not become the copy that the linker keeps for every processor.

#include "common/layout.h"
#include "cpu/kernels.h"
#include "gmmkernel/backward.h"
#include "gmmkernel/density.h"
#include "gmmkernel/normal.h"
#include "gmmkernel/ratio.h"
#include "gmmkernel/training.h"
#include "gmmkernel/transition.h"

namespace gmmkernel {
namespace {

using Lanes = GMM_LANES;
using F = Lanes::real;

constexpr int vectors = 4;  // one vector for each word of a Philox block
constexpr int group = vectors * Lanes::width;
constexpr int tile = 1024;  // elements whose noise is drawn ahead, and of a sum's first level
constexpr int noise_room = tile + group;

}  // namespace
}  // namespace gmmkernel

// Each needs those before it.
// clang-format off
#include "cpu/groups.inl"
#include "cpu/sums.inl"
#include "cpu/step.inl"
#include "cpu/backward.inl"
#include "cpu/density.inl"
#include "cpu/ratio.inl"
#include "cpu/training.inl"
// clang-format on

namespace gmmkernel {
namespace {

template <class T>
constexpr TypedKernels typed = {step<T>,
                                step_density_tiles<T>,
                                sum_densities<T>,
                                backward<T>,
                                sum_rows<T>,
                                scatter<T>,
                                log_prob_tiles<T>,
                                log_prob_samples<T>,
                                log_prob_backward<T>,
                                sum_weights<T>,
                                log_prob_scatter<T>,
                                log_ratio_tiles<T>,
                                sum_ratios<T>,
                                log_ratio_backward<T>,
                                add_noise<T>,
                                skip_loss_tiles<T>,
                                skip_loss_samples<T>,
                                scale_residual<T>,
                                skip_loss_backward<T>,
                                project_tiles<T>,
                                project_samples<T>};

const Kernels kernels = {group, typed<float>, typed<double>, standard_normal, dot, subtract_scaled};

}  // namespace
}  // namespace gmmkernel
