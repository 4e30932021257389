// The autograd node of every op, in C++: what `_function` of aigc_ext/ops/_op.py does in Python, in a third of the
// time at small sizes. It needs torch's own headers and Python's, so it is a library of its own, `aigc_autograd`,
// which serves only the versions that it was built with; on any other the Python form takes its place.
//
// A node calls the op's Python formula, as the Python form does. Where no second derivative can follow, the hot ops have
// a first derivative here too, in formulas.cpp.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/SafePyObject.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <optional>
#include <string>
#include <vector>

namespace aigc {

using torch::autograd::variable_list;

struct Record;

struct OpNode : torch::autograd::Node {
  explicit OpNode(const Record& r) : record(r) {}

  variable_list apply(variable_list&& grads) override;
  void release_variables() override;
  std::string name() const override;

  // A value that `kept` of the Python declaration returned, after the tensors. Reading a flag needs no GIL.
  bool flag(size_t i) const;

  const Record& record;
  std::vector<torch::autograd::SavedVariable> saved;
  std::vector<c10::IValue> plain;  // the arguments that are not tensors
  std::optional<c10::SafePyObject> arguments,
      more;  // Python tuples: the same, and the further values of `kept`
};

// The gradients of the op's tensors, of those that the node's task needs; nothing where the Python formula must serve.
// `saved` has the values, undefined for None: a saved tensor may be unpacked only once in a backward pass.
using First = std::optional<variable_list> (*)(OpNode&, const variable_list& saved,
                                               const variable_list& grads);

// By the op's name; null for an op that has none.
First first_derivative(const std::string& op);

struct Record {
  std::string name;
  c10::OperatorHandle op, run;  // `run` instead of `op` if a gradient may be needed
  size_t count, returned;       // tensors among the arguments; results that the caller gets
  std::vector<size_t> visible;  // results with a gradient
  std::vector<size_t> saved;    // places among the tensors and then the results
  size_t kept_tensors;
  PyObject *kept, *python,
      *formula;  // functions of _op.py; `kept` may be None. They live as long as the process
  First first;
};

}  // namespace aigc
