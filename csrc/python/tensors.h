// Tensors of PyTorch, read through DLPack's C exchange interface, which needs no PyTorch at build time.
//
// A call is plain where every tensor in it is exactly a tensor (no subclass), on the kernels' device, of the type and
// shape that its place asks for, with samples that are contiguous in themselves. Nothing else is said about a call that
// is not: Python's checks explain what is wrong with it, or find another way.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <initializer_list>

#include "gmmkernel/gmmkernel.h"

namespace py = pybind11;

namespace tensors {

// ---- DLPack's structures, version 1: https://dmlc.github.io/dlpack/latest/c_api.html ----

struct Device {
  std::int32_t type, index;
};

constexpr std::int32_t cpu_device = 1, cuda_device = 2;

struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct View {
  void* data;
  Device device;
  std::int32_t dimensions;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;
  std::uint64_t byte_offset;
};

struct Exchange {
  std::uint32_t major, minor;
  void* previous;
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*view)(void* object, View* out);
  void* current_stream;
};

// PyTorch's types, told once when the extension is loaded.
struct Torch {
  const Exchange* exchange = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
  // Of tensors, called without a look at the type's attributes: its exact type is known.
  PyCFunction is_neg = nullptr;
  getter requires_grad = nullptr;
  void* requires_grad_closure = nullptr;
};

inline Torch torch;

// Raises ImportError where this PyTorch cannot be read.
inline void learn_torch() {
  const py::module_ module = py::module_::import("torch");
  const py::object tensor = module.attr("Tensor"), parameter = module.attr("nn").attr("Parameter");
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  torch.exchange = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (torch.exchange == nullptr) throw py::error_already_set();
  if (torch.exchange->major != 1 || torch.exchange->view == nullptr) {
    throw py::import_error("PyTorch exchanges tensors by another version of DLPack than 1");
  }
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
  const py::object is_neg = tensor.attr("is_neg"), requires_grad = tensor.attr("requires_grad");
  if (Py_TYPE(is_neg.ptr()) != &PyMethodDescr_Type || Py_TYPE(requires_grad.ptr()) != &PyGetSetDescr_Type) {
    throw py::import_error("PyTorch's Tensor.is_neg and requires_grad are no descriptors of C functions");
  }
  torch.is_neg = reinterpret_cast<PyMethodDescrObject*>(is_neg.ptr())->d_method->ml_meth;
  const PyGetSetDef* found = reinterpret_cast<PyGetSetDescrObject*>(requires_grad.ptr())->d_getset;
  torch.requires_grad = found->get;
  torch.requires_grad_closure = found->closure;
}

constexpr int int64_type = -1, no_type = -2;

// A gmm_dtype, int64_type or no_type.
inline int type_of(const DataType& dtype) {
  if (dtype.lanes != 1) return no_type;
  switch (dtype.code << 8 | dtype.bits) {
    case 2 << 8 | 32:
      return GMM_FLOAT32;
    case 4 << 8 | 16:
      return GMM_BFLOAT16;
    case 2 << 8 | 16:
      return GMM_FLOAT16;
    case 2 << 8 | 64:
      return GMM_FLOAT64;
    case 0 << 8 | 64:
      return int64_type;
    default:
      return no_type;
  }
}

inline bool is_empty(const View& t) { return std::find(t.shape, t.shape + t.dimensions, 0) != t.shape + t.dimensions; }

// In the dimensions from `from` on; as everything without elements is.
inline bool is_contiguous(const View& t, std::int32_t from) {
  if (is_empty(t)) return true;
  std::int64_t expected = 1;
  for (std::int32_t d = t.dimensions - 1; d >= from; --d) {
    if (t.shape[d] != 1 && t.strides[d] != expected) return false;
    expected *= t.shape[d];
  }
  return true;
}

// ---- a call ----

// Reads a call's tensors one by one; whatever comes after something that is not plain is not looked at.
class Call {
 public:
  // `sample` is the tensor [B, ...] whose shape the others have. `checked`: by Python already, so that results may lie
  // where something is read. `tracks`: tensors that require a gradient are not plain.
  Call(Device device, py::handle sample, bool checked, bool tracks = false)
      : device_(device), checked_(checked), tracks_(tracks) {
    if (!read(sample, sample_)) return;
    dtype = type_of(sample_.dtype);
    require(sample_.dimensions >= 1);
    if (!plain_) return;
    batch = sample_.shape[0];
    elements = 1;
    for (std::int32_t d = 1; d < sample_.dimensions; ++d) elements *= sample_.shape[d];
    // Of a call that nothing is read for, the C interface checks less than Python does.
    require(checked_ || (batch > 0 && elements > 0));
  }

  std::int64_t batch = 0, elements = 0;
  int dtype = no_type;  // gmm_dtype of the sample

  bool is_plain() const { return plain_; }

  void require(bool fits) { plain_ = plain_ && fits; }

  // That of coefficients and tables.
  int table_type() const { return dtype == GMM_FLOAT64 ? GMM_FLOAT64 : GMM_FLOAT32; }

  // A tensor with the sample's shape; None is absent.
  gmm_input input(py::handle object) {
    const gmm_output found = of_samples(object);
    require(found.data == nullptr || found.dtype == dtype || found.dtype == GMM_FLOAT32 ||
            (dtype == GMM_FLOAT32 && found.dtype != GMM_FLOAT64));
    if (found.data != nullptr && !checked_) remember(found, true);
    return {found.data, found.batch_stride, found.dtype};
  }

  // A tensor with the sample's shape to write, after all that is read; None is not wanted.
  gmm_output output(py::handle object) {
    const gmm_output found = of_samples(object);
    if (found.data == nullptr) return found;
    require(batch <= 1 || found.batch_stride >= elements);
    if (!checked_) {
      require(found.dtype == dtype);
      require_apart(found);
    }
    return found;
  }

  // A contiguous tensor of a type, with so many dimensions; None is absent.
  void* contiguous(py::handle object, int type, std::initializer_list<std::int64_t*> sizes) {
    View t;
    if (object.is_none() || !read(object, t)) return nullptr;
    require(t.dimensions == static_cast<std::int32_t>(sizes.size()) && type_of(t.dtype) == type && is_contiguous(t, 0));
    if (!plain_) return nullptr;
    std::int64_t count = 1;
    const std::int64_t* shape = t.shape;
    for (std::int64_t* size : sizes) {
      *size = *shape++;
      count *= *size;
    }
    if (!checked_) remember(data_of(t), count * t.dtype.bits / 8);
    return data_of(t);
  }

  // Contiguous memory of the kernels' own; None is absent.
  void* room(py::handle object) {
    View t;
    if (object.is_none() || !read(object, t)) return nullptr;
    require(is_contiguous(t, 0));
    return data_of(t);
  }

  // int64 [B]; None is absent.
  std::int64_t* of_batch(py::handle object) {
    std::int64_t count = batch;
    void* data = contiguous(object, int64_type, {&count});
    require(count == batch);
    return static_cast<std::int64_t*>(data);
  }

  // An int, or int64 [], [1] or [B].
  gmm_index index(py::handle object) {
    if (PyLong_CheckExact(object.ptr())) {
      int overflow = 0;
      const std::int64_t value = PyLong_AsLongLongAndOverflow(object.ptr(), &overflow);
      require(overflow == 0);
      return {nullptr, 0, value};
    }
    View t;
    if (!read(object, t)) return {};
    const std::int64_t count = t.dimensions == 0 ? 1 : t.shape[0];
    require(t.dimensions <= 1 && type_of(t.dtype) == int64_type && (count == 1 || count == batch) &&
            is_contiguous(t, 0));
    if (!plain_) return {};
    if (!checked_) remember(data_of(t), 8 * count);
    return {static_cast<const std::int64_t*>(data_of(t)), count == 1 ? 0 : 1, 0};
  }

 private:
  // Memory that is read: at the same element only, or anywhere.
  struct Read {
    const char *begin, *end;
    std::int64_t batch_stride;
    int dtype;
    bool elementwise;
  };

  static void* data_of(const View& t) { return static_cast<char*>(t.data) + t.byte_offset; }

  gmm_output of_samples(py::handle object) {
    View t;
    if (object.is_none() || !read(object, t)) return {};
    require(t.dimensions == sample_.dimensions && std::equal(t.shape, t.shape + t.dimensions, sample_.shape) &&
            type_of(t.dtype) >= 0 && is_contiguous(t, 1));
    if (!plain_) return {};
    return {data_of(t), batch > 1 ? t.strides[0] : elements, type_of(t.dtype)};
  }

  static std::int64_t bytes_of(int type) { return type == GMM_FLOAT64 ? 8 : type == GMM_FLOAT32 ? 4 : 2; }

  Read reaching(const gmm_output& t, bool elementwise) const {
    const auto* begin = static_cast<const char*>(t.data);
    const std::int64_t reach = batch > 0 ? (batch - 1) * t.batch_stride + elements : 0;
    return {begin, begin + reach * bytes_of(t.dtype), t.batch_stride, t.dtype, elementwise};
  }

  void remember(const gmm_output& t, bool elementwise) { remember(reaching(t, elementwise)); }

  void remember(const void* data, std::int64_t bytes) {
    const auto* begin = static_cast<const char*>(data);
    remember({begin, begin + bytes, 0, 0, false});
  }

  void remember(const Read& read) {
    require(count_ < reads_.size());
    if (plain_) reads_[count_++] = read;
  }

  void require_apart(const gmm_output& t) {
    const Read written = reaching(t, true);
    for (std::size_t i = 0; i < count_; ++i) {
      const Read& other = reads_[i];
      const bool same = other.elementwise && other.begin == written.begin && other.dtype == written.dtype &&
                        other.batch_stride == written.batch_stride;
      require(same || other.end <= written.begin || written.end <= other.begin);
    }
  }

  bool read(py::handle object, View& t) {
    if (!plain_) return false;
    const PyTypeObject* type = Py_TYPE(object.ptr());
    require(type == torch.tensor || type == torch.parameter);
    if (!plain_) return false;
    if (torch.exchange->view(object.ptr(), &t) != 0) {
      PyErr_Clear();
      plain_ = false;
      return false;
    }
    require(t.device.type == device_.type && t.device.index == device_.index);
    if (checked_ || !plain_) return plain_;
    const bool is_real = type_of(t.dtype) >= 0;
    require(!(tracks_ && is_real && wants_gradient(object.ptr())));
    // One whose memory holds something else than its values: their negatives, or nothing at all for zeros.
    require((t.data != nullptr || is_empty(t)) && !(is_real && is_negated(object.ptr())));
    return plain_;
  }

  static bool wants_gradient(PyObject* tensor) {
    return is_true(torch.requires_grad(tensor, torch.requires_grad_closure));
  }

  static bool is_negated(PyObject* tensor) { return is_true(torch.is_neg(tensor, nullptr)); }

  // Of a new reference, or of an error.
  static bool is_true(PyObject* flag) {
    if (flag == nullptr) PyErr_Clear();
    Py_XDECREF(flag);
    return flag != Py_False;
  }

  Device device_;
  bool checked_, tracks_;
  bool plain_ = true;
  View sample_ = {};
  std::array<Read, 20> reads_;
  std::size_t count_ = 0;
};

}  // namespace tensors
