// Which of the compiled instruction sets this processor can run.
#pragma once

#include "cpu/kernels.h"

namespace gmmkernel {

gmm_instruction_set best_instruction_set();

// The kernels of a set, GMM_BEST included; nullptr where this build or processor does not have it.
const Kernels* kernels_for(int32_t instruction_set);

}  // namespace gmmkernel
