// The activation arguments as ops receive them, and bias_act as an epilogue for other ops.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "bias_act/bias_act.h"
#include "glue/tensor.h"

namespace aigc {

// Checks act, alpha, gain and clamp and puts them into the params.
void set_activation(BiasActParams& params, const std::string& act, double alpha, double gain,
                    std::optional<double> clamp, const char* op);

// The same, for an op whose params have these four members among others.
template <class Params>
void set_activation(Params& params, const std::string& act, double alpha, double gain,
                    std::optional<double> clamp, const char* op) {
  BiasActParams activation;
  set_activation(activation, act, alpha, gain, clamp, op);
  params.act = activation.act;
  params.alpha = activation.alpha;
  params.gain = activation.gain;
  params.clamp = activation.clamp;
}

// bias_act of a dense x into y (which may be x itself). Returns the mask, which is empty if it is not wanted
// or not needed.
Tensor bias_act_into(const Tensor& y, const Tensor& x, const OptionalTensor& b, const OptionalTensor& noise,
                     const OptionalTensor& strength, int64_t dim, BiasActParams params, bool save,
                     const char* op);

// What the activation was applied to, from which the gradients compute f'.
struct BiasActInputs {
  OptionalTensor x, b, noise, strength;  // x only of smooth activations
  OptionalTensor mask;                   // only of piecewise-linear ones
  int64_t dim = -1;
};

// Gradients that were not asked for are empty.
struct BiasActGradients {
  Tensor dx, db, dstrength;
};
BiasActGradients bias_act_gradients(const Tensor& dy, BiasActInputs inputs, BiasActParams params,
                                    bool channels_last, bool need_b, bool need_strength, const char* op);

// The derivatives of <u, dx> for smooth activations.
struct BiasActSecondGradients {
  Tensor grad_dy, grad_x, grad_b, grad_strength;
};
BiasActSecondGradients bias_act_second_gradients(const Tensor& u, const Tensor& dy, BiasActInputs inputs,
                                                 BiasActParams params, bool channels_last, bool need_b,
                                                 bool need_strength, const char* op);

}  // namespace aigc
