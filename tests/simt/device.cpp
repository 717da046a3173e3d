// A made-up device of torch, `simt`, whose memory the host may not touch (memory.h): PrivateUse1. What an op needs of
// it is copied to the host, computed there and copied back, so that the arena is open in copies and in launches alone.
#include "device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "../../csrc/bindings/scopes.h"
#include "../../csrc/cuda/logits_loss.h"
#include "memory.h"

namespace fastgan::bindings {

namespace made_up_device {

constexpr c10::DeviceType device_type = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);

struct DeviceAllocator : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* const p = simt::device_allocate(bytes);
    return {p, p, simt::device_free, c10::Device(device_type, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return simt::device_free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    const simt::DeviceWork work;
    std::memcpy(to, from, bytes);
  }
};

DeviceAllocator& allocator() {
  static DeviceAllocator& one = *new DeviceAllocator;
  return one;
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator(), keys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator(), keys, c10::dtype_or_default(dtype));
}

// The same memory as a tensor on the host: to be used while the device works.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.device().is_privateuseone()) return tensor;
  return at::from_blob(tensor.mutable_data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  const simt::DeviceWork work;
  on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const at::Tensor& resize(const at::Tensor& tensor, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
  const size_t bytes = (c10::multiply_integers(size) + impl->storage_offset()) * tensor.itemsize();
  if (bytes > tensor.storage().nbytes()) {
    c10::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
    c10::DataPtr larger = allocator().allocate(bytes);
    if (storage->nbytes() > 0) allocator().copy_data(larger.mutable_get(), storage->data(), storage->nbytes());
    storage->set_data_ptr(std::move(larger));
    storage->set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(size);
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset);
  if (stride.empty())
    impl->set_sizes_contiguous(size);
  else
    impl->set_sizes_and_strides(size, stride);
  return tensor;
}

at::Tensor& set_whole_storage(at::Tensor& tensor, at::Storage storage) {
  const int64_t elements = int64_t(storage.nbytes() / tensor.itemsize());
  return set_storage(tensor, std::move(storage), 0, {elements}, {});
}

struct Hooks : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::Device getDeviceFromPtr(void* p) const override {
    TORCH_CHECK(simt::is_device(p), "a tensor on simt is made of memory that is not the device's");
    return {device_type, 0};
  }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

// One stream, on which the host waits for all: events have nothing to do.
struct Guard : c10::impl::NoOpDeviceGuardImpl<device_type> {
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return {device_type, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(getDevice()); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("view", static_cast<at::Tensor (*)(const at::Tensor&, at::IntArrayRef)>(at::native::view));
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
}

}  // namespace made_up_device

void register_device_memory(pybind11::module_& m) {
  m.def("use_device_memory", [] {
    at::RegisterPrivateUse1HooksInterface(new made_up_device::Hooks);
    c10::SetAllocator(made_up_device::device_type, &made_up_device::allocator());
    simt::keep_kernels_to_device_memory();
  });
  // What must not be, to show that it is seen: a binding that reads a tensor; a kernel that is given any tensor.
  m.def("read_on_the_host", [](const Tensor& t) { return *static_cast<const volatile float*>(t.const_data_ptr()); });
  m.def("sum_of_losses", [](const Tensor& logits, const Tensor& loss) {
    const CudaScope here(loss);
    const LogitsTerm<float> batch{logits.numel(), data<float>(logits), nullptr, 1, 1, 1, nullptr};
    cuda::logits_loss_sum(here, LossTerm::cross_entropy, &batch, 1, mutable_data<float>(loss));
  });
}

}  // namespace fastgan::bindings
