// In the build `count`, the library's products are counted too: the linker has the bindings call these instead of
// at::mm, at::mm_out and at::addmm (build.py).
#include <ATen/core/Tensor.h>
#include <c10/core/Scalar.h>

#include <string>

#define MM_OUT(prefix) prefix##_ZN2at4_ops6mm_out4callERKNS_6TensorES4_RS2_
#define MM(prefix) prefix##_ZN2at4_ops2mm4callERKNS_6TensorES4_
#define ADDMM(prefix) prefix##_ZN2at4_ops5addmm4callERKNS_6TensorES4_S4_RKN3c106ScalarES8_

#pragma GCC diagnostic ignored "-Wreturn-type-c-linkage"

extern "C" {

void simt_count_note(const char* name, const char* note);
void simt_count_touch(const void* p, size_t bytes, int writes);

at::Tensor& MM_OUT(__real_)(const at::Tensor& a, const at::Tensor& b, at::Tensor& c);
at::Tensor MM(__real_)(const at::Tensor& a, const at::Tensor& b);
at::Tensor ADDMM(__real_)(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b, const c10::Scalar& beta,
                          const c10::Scalar& alpha);

static void count(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  const auto entry = [](const char* key, int64_t value) {
    return std::string("\"") + key + "\":" + std::to_string(value);
  };
  const std::string note = "{" + entry("m", c.size(0)) + "," + entry("n", c.size(1)) + "," + entry("k", a.size(1)) +
                           "," + entry("bytes", int64_t(a.element_size())) + "}";
  simt_count_note("library product", note.c_str());
  for (const at::Tensor* operand : {&a, &b}) simt_count_touch(operand->data_ptr(), operand->nbytes(), 0);
  simt_count_touch(c.data_ptr(), c.nbytes(), 1);
}

at::Tensor& MM_OUT(__wrap_)(const at::Tensor& a, const at::Tensor& b, at::Tensor& c) {
  MM_OUT(__real_)(a, b, c);
  count(a, b, c);
  return c;
}

at::Tensor MM(__wrap_)(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor c = MM(__real_)(a, b);
  count(a, b, c);
  return c;
}

at::Tensor ADDMM(__wrap_)(const at::Tensor& bias, const at::Tensor& a, const at::Tensor& b, const c10::Scalar& beta,
                          const c10::Scalar& alpha) {
  at::Tensor c = ADDMM(__real_)(bias, a, b, beta, alpha);
  count(a, b, c);
  return c;
}

}  // extern "C"
