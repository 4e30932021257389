#include "autograd/autograd.h"

#include <ATen/ThreadLocalPythonObjects.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/PythonFallbackKernel.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

namespace aigc {
namespace {

using at::Tensor;

// Of aigc_ext/ops/_mode.py: how deep the thread is in no_weight_gradients(). Python keeps one object for 0.
constexpr const char* DEPTH = "aigc_ext.no_weight_gradients";
PyObject* zero = nullptr;

bool weight_gradients() {
  using Objects = at::impl::ThreadLocalPythonObjects;
  return !Objects::contains(DEPTH) || Objects::get(DEPTH)->ptr(getPyInterpreter()) == zero;
}

bool inside_transform() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool has_tangent(const variable_list& tensors) {
  for (const Tensor& t : tensors)
    if (t.defined() && t._fw_grad(0).defined()) return true;
  return false;
}

c10::SafePyObject safe(THPObjectPtr object) { return {object.release(), getPyInterpreter()}; }

THPObjectPtr checked(PyObject* object) {
  if (object == nullptr) throw python_error();
  return THPObjectPtr(object);
}

THPObjectPtr tuple_of(const variable_list& tensors) {
  THPObjectPtr tuple = checked(PyTuple_New(static_cast<Py_ssize_t>(tensors.size())));
  for (size_t i = 0; i < tensors.size(); ++i)
    PyTuple_SET_ITEM(tuple.get(), i, checked(THPVariable_Wrap(tensors[i])).release());
  return tuple;
}

// Not a subclass, of which only Python knows how to handle it, nor a tensor that outlived a transform.
bool is_usual(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return false;
  const auto keys = THPVariable_Unpack(object).key_set();
  return !keys.has(c10::DispatchKey::FuncTorchGradWrapper) && !keys.has(c10::DispatchKey::FuncTorchBatched);
}

// The arguments on the stack; false if they are for the Python form.
bool push(const Record& record, PyObject* const* values, size_t given, torch::jit::Stack& stack,
          bool& differentiable) {
  const auto& arguments = record.op.schema().arguments();
  if (given != arguments.size() || at::impl::torch_function_mode_enabled() || inside_transform())
    return false;
  stack.reserve(given);
  for (size_t i = 0; i < given; ++i) {
    if (i >= record.count) {
      stack.push_back(torch::jit::toIValue(values[i], arguments[i].type()));
    } else if (values[i] == Py_None) {
      if (arguments[i].type()->kind() == c10::TypeKind::TensorType) return false;
      stack.emplace_back();
    } else {
      if (!is_usual(values[i])) return false;
      const Tensor& t = THPVariable_Unpack(values[i]);
      differentiable |= t.requires_grad();
      stack.emplace_back(t);
    }
  }
  return true;
}

void run(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  pybind11::gil_scoped_release without_gil;
  at::AutoDispatchBelowAutograd guard;
  op.callBoxed(stack);
}

THPObjectPtr shown(const Record& record, const torch::jit::Stack& results) {
  if (record.returned == 1) return checked(THPVariable_Wrap(results[0].toTensor()));
  variable_list tensors(record.returned);
  for (size_t i = 0; i < record.returned; ++i) tensors[i] = results[i].toTensor();
  return tuple_of(tensors);
}

PyObject* recorded(const Record& record, PyObject* const* values, torch::jit::Stack stack) {
  variable_list inputs(record.count);
  for (size_t i = 0; i < record.count; ++i)
    if (!stack[i].isNone()) inputs[i] = stack[i].toTensor();
  auto node = c10::make_intrusive<OpNode>(record);
  node->plain.assign(stack.begin() + static_cast<std::ptrdiff_t>(record.count), stack.end());
  THPObjectPtr plain = checked(PyTuple_New(static_cast<Py_ssize_t>(node->plain.size())));
  for (size_t i = 0; i < node->plain.size(); ++i)
    PyTuple_SET_ITEM(plain.get(), i, Py_NewRef(values[record.count + i]));
  run(record.run, stack);

  variable_list results(stack.size());
  for (size_t i = 0; i < stack.size(); ++i) results[i] = stack[i].toTensor();
  variable_list saved;
  for (const size_t place : record.saved)
    saved.push_back(place < record.count ? inputs[place] : results[place - record.count]);
  if (record.kept != Py_None) {
    std::vector<PyObject*> all(values, values + record.count + node->plain.size());
    THPObjectPtr out = results.size() == 1 ? checked(THPVariable_Wrap(results[0])) : tuple_of(results);
    all.push_back(out.get());
    THPObjectPtr kept = checked(PyObject_Vectorcall(record.kept, all.data(), all.size(), nullptr));
    for (size_t i = 0; i < record.kept_tensors; ++i) {
      PyObject* t = PyTuple_GetItem(kept.get(), static_cast<Py_ssize_t>(i));
      if (t == nullptr) throw python_error();
      saved.push_back(t == Py_None ? Tensor() : THPVariable_Unpack(t));
    }
    const auto first = static_cast<Py_ssize_t>(record.kept_tensors);
    node->more.emplace(safe(checked(PyTuple_GetSlice(kept.get(), first, PyTuple_Size(kept.get())))));
  }
  node->arguments.emplace(safe(std::move(plain)));

  node->set_next_edges(torch::autograd::collect_next_edges(at::ArrayRef<Tensor>(inputs)));
  std::vector<const at::TensorImpl*> outputs;
  for (const size_t i : record.visible) {
    torch::autograd::set_history(results[i], node);
    outputs.push_back(results[i].unsafeGetTensorImpl());
  }
  for (const Tensor& t : saved) {
    const bool output = std::find(outputs.begin(), outputs.end(), t.unsafeGetTensorImpl()) != outputs.end();
    node->saved.emplace_back(t, output && t.defined());
  }
  return shown(record, stack).release();
}

const char CAPSULE[] = "aigc_record";

PyObject* call(PyObject* capsule, PyObject* const* values, Py_ssize_t given) {
  HANDLE_TH_ERRORS
  const auto& record = *static_cast<const Record*>(PyCapsule_GetPointer(capsule, CAPSULE));
  torch::jit::Stack stack;
  bool differentiable = false, usual = true;
  try {
    usual = push(record, values, static_cast<size_t>(given), stack, differentiable);
  } catch (const pybind11::cast_error&) {
    usual = false;  // whose error names the argument
  }
  if (!usual) return PyObject_Vectorcall(record.python, values, static_cast<size_t>(given), nullptr);
  if (differentiable && at::GradMode::is_enabled()) return recorded(record, values, std::move(stack));
  run(record.op, stack);
  return shown(record, stack).release();
  END_HANDLE_TH_ERRORS
}

PyMethodDef call_definition = {"native_op", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)),
                               METH_FASTCALL, "Calls the op, recording its derivative."};

pybind11::object make(const std::string& name, const std::string& op, const std::string& overload,
                      const std::string& run, const std::string& run_overload, size_t count, size_t returned,
                      std::vector<size_t> visible, std::vector<size_t> saved, size_t kept_tensors,
                      pybind11::object kept, pybind11::object python, pybind11::object formula) {
  auto& dispatcher = c10::Dispatcher::singleton();
  auto* record = new Record{name,
                            dispatcher.findSchemaOrThrow(op.c_str(), overload.c_str()),
                            dispatcher.findSchemaOrThrow(run.c_str(), run_overload.c_str()),
                            count,
                            returned,
                            std::move(visible),
                            std::move(saved),
                            kept_tensors,
                            kept.release().ptr(),
                            python.release().ptr(),
                            formula.release().ptr(),
                            first_derivative(name)};
  auto capsule = pybind11::capsule(record, CAPSULE);
  return pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&call_definition, capsule.ptr()));
}

}  // namespace

variable_list OpNode::apply(variable_list&& grads) {
  bool any = false;
  for (const Tensor& t : grads) any |= t.defined();
  if (!any) return variable_list(record.count);
  variable_list values(saved.size());
  for (size_t i = 0; i < saved.size(); ++i) values[i] = saved[i].unpack(getptr());
  if (record.first != nullptr && !at::GradMode::is_enabled() && weight_gradients() && !has_tangent(grads)) {
    if (auto gradients = record.first(*this, values, grads)) return std::move(*gradients);
  }
  pybind11::gil_scoped_acquire gil;
  THPObjectPtr needs = checked(PyTuple_New(static_cast<Py_ssize_t>(record.count)));
  for (size_t i = 0; i < record.count; ++i)
    PyTuple_SET_ITEM(needs.get(), i, PyBool_FromLong(task_should_compute_output(i)));
  THPObjectPtr saved_values = tuple_of(values), given = tuple_of(grads);
  THPObjectPtr none = checked(PyTuple_New(0));
  PyObject* rest = more ? more->ptr(getPyInterpreter()) : none.get();
  PyObject* plain_values = arguments->ptr(getPyInterpreter());
  THPObjectPtr result = checked(PyObject_CallFunctionObjArgs(record.formula, needs.get(), saved_values.get(),
                                                             rest, plain_values, given.get(), nullptr));
  THPObjectPtr sequence = checked(PySequence_Fast(result.get(), "a formula must return a sequence"));
  TORCH_CHECK(PySequence_Fast_GET_SIZE(sequence.get()) == static_cast<Py_ssize_t>(record.count),
              "aigc::", record.name, ": its formula returned ", PySequence_Fast_GET_SIZE(sequence.get()),
              " gradients for ", record.count);
  variable_list gradients(record.count);
  for (size_t i = 0; i < record.count; ++i) {
    PyObject* t = PySequence_Fast_GET_ITEM(sequence.get(), static_cast<Py_ssize_t>(i));
    if (t == Py_None) continue;
    TORCH_CHECK(THPVariable_Check(t), "aigc::", record.name, ": its formula returned a ",
                Py_TYPE(t)->tp_name);
    gradients[i] = THPVariable_Unpack(t);
  }
  return gradients;
}

void OpNode::release_variables() {
  for (auto& variable : saved) variable.reset_data();
}

std::string OpNode::name() const { return "aigc_" + record.name + "Backward"; }

bool OpNode::flag(size_t i) const {
  return PyTuple_GET_ITEM(more->ptr(getPyInterpreter()), static_cast<Py_ssize_t>(i)) == Py_True;
}

}  // namespace aigc

PYBIND11_MODULE(aigc_autograd, module) {
  aigc::zero = PyLong_FromLong(0);
  module.def("make", &aigc::make);
}
