// One sampling step, element by element and straight from its equations: what every kernel must repeat bit for bit.
#pragma once

#include "step_case.h"

// Fills result, prediction and components of `c`.
void step_plainly(StepCase& c);

// The four random words of block `block` of a sample.
void words_plainly(int64_t seed, uint64_t block, int64_t step, int32_t stream, uint32_t (&words)[4]);

// Element `element` of the noise of a sample.
float noise_plainly(int64_t seed, uint64_t element, int64_t step, int32_t stream);

// The number of values of the cdf, `components - 1` of them, that the sample's word reaches.
int64_t component_plainly(int64_t seed, int64_t step, const int64_t* cdf, int64_t components);
