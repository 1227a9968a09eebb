// What every op of this folder checks of its arguments, and how it allocates its results.
//
// A wrong argument raises ValueError (std::invalid_argument) before anything is launched. Values of tensors are never
// read here: that would wait for the GPU. A kernel takes the pointer to a scale and reads it there.
#pragma once

#include <sstream>

#include "platform.h"

namespace quamba::cuda {

using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::string text(Shape shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ']';
  return out.str();
}

template <typename... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline bool same_shape(Shape a, Shape b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) return false;
  return true;
}

inline void check_dtype(const Tensor& t, ScalarType dtype, const char* name) {
  check(t.scalar_type() == dtype, name, " must be ", dtype, ", got ", t.scalar_type());
}

inline void check_shape(const Tensor& t, const std::vector<int64_t>& shape, const char* name) {
  check(same_shape(t.sizes(), shape), name, " must have shape ", text(shape), ", got ", text(t.sizes()));
}

inline void check_device(const Tensor& t, const Tensor& like, const char* name) {
  check(t.device() == like.device(), name, " must be on the device of the op's first argument");
}

// Contiguous values of an argument. `keep` lives as long as the kernel's launch needs the pointer: until the op returns
// (the stream's order does the rest).
template <typename T>
const T* values(const Tensor& t, const std::vector<int64_t>& shape, const Tensor& like, const char* name,
                std::optional<Tensor>& keep) {
  check_dtype(t, torch::headeronly::CppTypeToScalarType<T>::value, name);
  check_shape(t, shape, name);
  check_device(t, like, name);
  keep = torch::stable::contiguous(t);
  return static_cast<const T*>(keep->const_data_ptr());
}

template <typename T>
const T* values(const std::optional<Tensor>& t, const std::vector<int64_t>& shape, const Tensor& like,
                const char* name, std::optional<Tensor>& keep) {
  return t.has_value() ? values<T>(*t, shape, like, name, keep) : nullptr;
}

// Where the one float of a tensor lies, for a kernel to read.
inline const float* scalar(const Tensor& t, const Tensor& like, const char* name) {
  check_dtype(t, ScalarType::Float, name);
  check(t.numel() == 1, name, " must hold one value, got shape ", text(t.sizes()));
  check_device(t, like, name);
  return static_cast<const float*>(t.const_data_ptr());
}

// Contiguous, and float32 where it was another type.
inline Tensor as_float(const Tensor& t) {
  return torch::stable::contiguous(t.scalar_type() == ScalarType::Float ? t
                                                                        : torch::stable::to(t, ScalarType::Float));
}

// Rows may be strided (a slice of a projection's output); values within a row may not.
inline Tensor with_contiguous_rows(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1 ? t : torch::stable::contiguous(t);
}

// An uninitialized tensor on the device of `like`.
inline Tensor empty(Shape shape, ScalarType dtype, const Tensor& like) {
  Tensor out = torch::stable::new_empty(like, shape, dtype);
#if defined(QUAMBA_EMULATED)
  emulation::poison(out.mutable_data_ptr(), static_cast<size_t>(out.numel() * out.element_size()));
#endif
  return out;
}

template <typename T>
T* pointer(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <typename T>
const T* const_pointer(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace quamba::cuda
