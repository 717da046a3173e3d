// A whole step on a CUDA device: csrc/cuda/step.h over the engine's tensors, captured as one graph.
//
// What changes from step to step lies on the device, at places that stay: the inputs are copied to tensors of the
// engine's own, and what the updates depend on (learning rates, counts of steps) is set there when it has changed. So a
// step is the copies of the inputs, a replay and a copy of four numbers; the host waits for nothing. A graph holds
// addresses, of the user's tensors too: they are compared at each step with where those tensors are now.
#pragma once

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../cuda/adam.h"
#include "../cuda/step.h"
#include "layer_path.h"
#include "scopes.h"
#include "step_choice.h"
#include "step_graphs.h"
#include "step_networks.h"
#include "step_scope.h"

#ifdef FASTGAN_WITH_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

namespace fastgan::bindings {

class CudaStep {
 public:
  explicit CudaStep(StepNetworks& networks) : networks_(networks) {}

  template <class T>
  void run(const StepSettings& settings, const StepInputs& inputs, const std::vector<AdamGroup>& groups,
           const std::vector<Tensor>& learning_rates, bool draws, const StepChoice* choice, const Tensor& result) {
    static_assert(sizeof(StepSums<T>) == 5 * sizeof(T), "the statistics, one after the other");
    options_.rounding = settings.bf16  ? cuda::Rounding::bf16
                        : allow_tf32() ? cuda::Rounding::tf32
                                       : cuda::Rounding::none;
    choice_ = choice;
    options_.narrow = choice != nullptr && choice->narrow
                          ? *choice->narrow
                          : prefers_narrow_step(inputs.batch(), networks_.first().scalar_type(),
                                                largest_cluster_on(networks_.first()));
    if (settings.classes > 0 && odd_label_ == nullptr) odd_label_ = std::make_unique<HostWord>(networks_.first());
#ifdef FASTGAN_WITH_CUDA
    const c10::cuda::CUDAGuard guard(networks_.first().device());
    if (is_capturing_now()) return run_within_a_graph<T>(settings, inputs, groups, learning_rates, draws, result);
#endif
    reserve_updates<T>(own_updates_);
    updates_ = &own_updates_;
    {
      StepMemory nothing;
      const StepScope here(networks_.first(), nothing);
      set_updates<T>(here, settings, groups, learning_rates);
      set_noise_scale(inputs.noise_scale);
    }
    try {
#ifdef FASTGAN_WITH_CUDA
      replay_or_run<T>(settings, inputs, draws);
#else
      if (draws) networks_.draw(inputs.noise);
      launch<T>(settings, inputs, own_memory_);
#endif
    } catch (...) {
      take_back_counts();
      throw;
    }
    result.copy_(updates_->sums, /*non_blocking=*/true);
  }

  // A label of an earlier step that was not in [0, classes), where its step has got so far.
  std::optional<int64_t> odd_label() {
    if (odd_label_ == nullptr) return std::nullopt;
    const int64_t label = std::exchange(*static_cast<volatile int64_t*>(odd_label_->address()), 0);
    return label == 0 ? std::nullopt : std::optional<int64_t>(label);  // zero is never odd
  }

  // Before an update of D the updates before it are done, of D too where it has several in a step.
  void prepare(int network) {
    if (network == discriminator_index) here_->join();
  }

  template <class T>
  void reserve(const StepProblem<T>& problem) {
    const int64_t needed = int64_t(cuda::step_workspace(*here_, problem));
    Tensor& workspace = memory_->workspace;
    if (workspace.defined() && workspace.numel() >= needed) return;
    workspace = Tensor();  // before the new one is made
    workspace = at::empty({needed}, bytes());
  }

  template <class T>
  void discriminator_step(const StepProblem<T>& problem) {
    cuda::discriminator_step(*here_, problem, memory_->workspace.mutable_data_ptr(), sums<T>(), options_,
                             preparation<T>(updates_->of_generator, int64_t(updates_->list.size())));
  }

  template <class T>
  void generator_step(const StepProblem<T>& problem, bool fresh) {
    cuda::generator_step(*here_, problem, memory_->workspace.mutable_data_ptr(), fresh, sums<T>(), options_,
                         preparation<T>(0, updates_->of_generator));
  }

  // Of the last step that was launched rather than replayed: whether networks that fit took the narrow kernels, and the
  // products that were launches of their own.
  bool was_narrow() const { return options_.narrow; }
  const std::map<ProductKey, bool>& taken() const { return taken_; }

 private:
  // An updated parameter, and what the device holds of it.
  struct Update {
    Parameter* parameter;
    cuda::AdamDue due;
    double steps_done;  // on the device; negative before it is set
    bool own_count;     // its `step` is on the host, and counted here as well
    double before;      // what that was before the step under way
  };

  // What the updates depend on, on the device.
  struct Updates {
    std::vector<Update> list;  // the generator's first
    int64_t of_generator = 0;
    bool is_set = false;
    Tensor due, steps, counts, sums, odd_label, noise_scale;
    double noise_scale_there = 0;

    cuda::AdamDue* due_list() const { return static_cast<cuda::AdamDue*>(due.mutable_data_ptr()); }
    template <class T>
    AdamStep<T>* steps_of() const {
      return static_cast<AdamStep<T>*>(steps.mutable_data_ptr());
    }
  };

  // The memory of a step of one size of batch.
  struct Memory {
    StepInputs inputs;
    std::vector<std::vector<Tensor>> masks;  // of each layer
    std::vector<Tensor> gumbel;              // likewise
    Draws draws;
    StepMemory launches;
    std::array<StepMemory, branch_count> branches;
    Tensor workspace;
  };

  at::TensorOptions bytes() const { return networks_.first().options().dtype(at::kByte); }
  template <class T>
  StepSums<T>* sums() const {
    return static_cast<StepSums<T>*>(updates_->sums.mutable_data_ptr());
  }

  // Of the updates in [begin, end).
  template <class T>
  cuda::AdamPreparation<T> preparation(int64_t begin, int64_t end) const {
    return {updates_->due_list() + begin, int(end - begin), updates_->steps_of<T>() + begin};
  }

  // One step, launch by launch, on a memory.
  template <class T>
  void launch(const StepSettings& settings, const StepInputs& inputs, Memory& memory) {
    StepScope here(networks_.first(), memory.launches);
    here.rounds_to_bf16 = options_.rounding == cuda::Rounding::bf16;
    here.choice = choice_, here.taken = &taken_;
    here.add_branches(networks_.first(), memory.branches, [&](int branch) { return stream_of(branch); });
    taken_.clear();
    here_ = &here, memory_ = &memory;
    swap_draws(memory);
    options_.noise_scale = data<double>(updates_->noise_scale);
    options_.odd_labels = {};
    if (settings.classes > 0) {
      options_.odd_labels.found = static_cast<unsigned*>(updates_->odd_label.mutable_data_ptr());
      // A graph of the caller's may outlive this.
      if (updates_ == &own_updates_) options_.odd_labels.told = odd_label_->address();
    }
    try {
      run_step<T>(*this, networks_, settings, inputs);
      here.join();
    } catch (...) {
      swap_draws(memory);
      here_ = nullptr, memory_ = nullptr;
      throw;
    }
    swap_draws(memory);
    here_ = nullptr, memory_ = nullptr;
  }

  // While one of the engine's own graphs is captured, each branch has a stream of its own.
#ifdef FASTGAN_WITH_CUDA
  std::optional<c10::cuda::CUDAStream> stream_of(int branch) const {
    return is_capturing_ ? std::optional(capture_streams_[1 + branch]->get()) : std::nullopt;
  }
#else
  static std::nullptr_t stream_of(int) { return nullptr; }
#endif

  // Masks, Gumbel draws and noise are drawn into the tensors that layers and networks hold.
  void swap_draws(Memory& memory) {
    std::swap(memory.draws, networks_.draws);
    size_t index = 0;
    for (Network& network : networks_.networks)
      for (Layer& layer : network.layers) {
        if (memory.masks.size() <= index) memory.masks.emplace_back(), memory.gumbel.emplace_back();
        std::swap(memory.gumbel[index], layer.gumbel);
        memory.masks[index++].swap(layer.masks);
      }
  }

  template <class T>
  void reserve_updates(Updates& updates) {
    if (updates.due.defined()) return;
    std::vector<Update> list;
    for (Network& network : networks_.networks) {
      network.for_parameters([&](Parameter& parameter) {
        if (!parameter.is_updated()) return;
        const bool here = counts_on_device(parameter);
        TORCH_CHECK(here || parameter.step.is_cpu(), "an optimizer's step count must be on the CPU, or on ",
                    parameter.value.device(), " as float32 or float64, but one is ", parameter.step.scalar_type(),
                    " on ", parameter.step.device());
        list.push_back({&parameter, {}, -1, !here, 0});
      });
      if (&network == networks_.networks) updates.of_generator = int64_t(list.size());
    }
    const int64_t count = int64_t(list.size());
    const at::TensorOptions options = networks_.first().options();
    updates.steps = at::empty({count * int64_t(sizeof(AdamStep<T>))}, bytes());
    updates.counts = at::empty({count}, options.dtype(at::kFloat));
    updates.sums = at::zeros({5}, options);
    updates.odd_label = at::zeros({1}, options.dtype(at::kInt));
    updates.noise_scale = at::zeros({1}, options.dtype(at::kDouble));
    updates.due = at::empty({count * int64_t(sizeof(cuda::AdamDue))}, bytes());
    updates.list = std::move(list);
  }

  static bool counts_on_device(const Parameter& parameter) {
    const at::ScalarType dtype = parameter.step.scalar_type();
    return parameter.step.device() == parameter.value.device() && (dtype == at::kFloat || dtype == at::kDouble) &&
           parameter.step.numel() == 1;
  }

  // Sets what the coming updates depend on, where it is not as it was, and counts them where the counts are elsewhere.
  template <class T>
  void set_updates(const StepScope& here, const StepSettings& settings, const std::vector<AdamGroup>& groups,
                   const std::vector<Tensor>& learning_rates) {
    std::vector<cuda::AdamDue> list;
    std::vector<double> counts;
    bool changed = !updates_->is_set;
    for (size_t k = 0; k < updates_->list.size(); ++k) {
      Update& update = updates_->list[k];
      Parameter& parameter = *update.parameter;
      parameter.device_step = updates_->steps_of<T>() + k;
      const AdamGroup& group = groups[*parameter.group];
      const Tensor& rate = learning_rates[*parameter.group];
      cuda::AdamDue now{group.options, group.learning_rate, rate.defined() ? data<float>(rate) : nullptr, nullptr,
                        nullptr};
      if (update.own_count)
        now.step = mutable_data<float>(updates_->counts) + k;
      else if (parameter.step.scalar_type() == at::kFloat)
        now.step = mutable_data<float>(parameter.step);
      else
        now.double_step = mutable_data<double>(parameter.step);
      double set = -1;
      if (update.own_count) {
        const double done = update.before = parameter.steps_done();
        if (done != update.steps_done) set = done;
        const bool in_generator = int64_t(k) < updates_->of_generator;
        update.steps_done = done + (in_generator ? 1 : double(settings.d_steps));
        parameter.set_steps_done(update.steps_done);
      }
      changed = changed || set >= 0 || !same(now, update.due);
      update.due = now;
      list.push_back(now), counts.push_back(set);
    }
    if (changed) set_adam(here, list.data(), counts.data(), int(list.size()), updates_->due_list());
    updates_->is_set = true;
  }

  // The noise on D's inputs is scaled by what lies on the device.
  void set_noise_scale(double scale) {
    if (scale == updates_->noise_scale_there) return;
    updates_->noise_scale.fill_(scale);
    updates_->noise_scale_there = scale;
  }

  // A step that failed counts for nothing.
  void take_back_counts() {
    for (Update& update : updates_->list) {
      if (!update.own_count) continue;
      update.parameter->set_steps_done(update.before);
      update.steps_done = -1;
    }
  }

  static bool same(const cuda::AdamDue& a, const cuda::AdamDue& b) {
    const auto all = [](const cuda::AdamDue& d) {
      const AdamOptions& o = d.options;
      return std::make_tuple(o.beta1, o.beta2, o.weight_decay, o.eps, o.amsgrad, o.maximize, o.decoupled_weight_decay,
                             d.learning_rate, d.learning_rate_tensor, d.step, d.double_step);
    };
    return all(a) == all(b);
  }

#ifdef FASTGAN_WITH_CUDA
  // What a captured graph holds for, but for the addresses of the user's tensors.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, cuda::Rounding, LayerPath, bool, const StepChoice*,
                         bool, bool>;

  struct Captured {
    Key key;
    std::vector<void*> addresses;
    Memory memory;
    std::unique_ptr<at::cuda::CUDAGraph> graph;
    std::optional<cudaStream_t> stream;  // of the last step
    bool has_run = false, uses_library = false;
  };
  // As many as usually take turns: two sizes of batch, with the smaller last one of an epoch, with a penalty and
  // without.
  static constexpr size_t most_captured = 4;

  // Within a graph of the caller's: all that the launches use is memory of that graph, and nothing is believed of it
  // afterwards. So the replays count for themselves, as those of torch.optim's capturable optimizers do.
  template <class T>
  void run_within_a_graph(const StepSettings& settings, const StepInputs& given, const std::vector<AdamGroup>& groups,
                          const std::vector<Tensor>& learning_rates, bool draws, const Tensor& result) {
    for (const Network& network : networks_.networks)
      network.for_parameters([](const Parameter& parameter) {
        TORCH_CHECK(!parameter.is_updated() || counts_on_device(parameter),
                    "Attempting CUDA graph capture of TrainStep.step, but an optimizer counts its steps on the host. "
                    "Set capturable=True when constructing it (or in its param_groups) if you intend to capture it.");
      });
    Updates updates;
    Memory memory;
    reserve_updates<T>(updates);
    updates_ = &updates;
    {
      StepMemory nothing;
      const StepScope here(networks_.first(), nothing);
      set_updates<T>(here, settings, groups, learning_rates);
      set_noise_scale(given.noise_scale);
    }
    StepInputs inputs = given;
    if (draws) inputs.noise = at::empty(given.noise.sizes(), given.noise.options()).normal_();
    launch<T>(settings, inputs, memory);
    result.copy_(updates.sums, /*non_blocking=*/true);
    updates_ = nullptr;
  }

  // Where the user's tensors are.
  void read_addresses(std::vector<void*>& addresses) const {
    addresses.clear();
    const auto add = [&](const Tensor& tensor) {
      addresses.push_back(tensor.defined() ? tensor.mutable_data_ptr() : nullptr);
    };
    for (const Network& network : networks_.networks) {
      network.for_parameters([&](const Parameter& p) {
        add(p.value), add(p.average), add(p.exp_avg), add(p.exp_avg_sq), add(p.max_exp_avg_sq);
      });
      for (const Layer& layer : network.layers) add(layer.running_mean), add(layer.running_var), add(layer.batches);
    }
  }

  // The memory and graph of a key, the latest first; the one that was not used for longest makes room.
  Captured& captured_of(const Key& key) {
    const auto found =
        std::find_if(captured_.begin(), captured_.end(), [&](const auto& entry) { return entry->key == key; });
    if (found != captured_.end()) {
      std::rotate(captured_.begin(), found, found + 1);
    } else {
      if (captured_.size() == most_captured) captured_.pop_back();
      captured_.insert(captured_.begin(), std::make_unique<Captured>());
      captured_.front()->key = key;
    }
    return *captured_.front();
  }

  // The first step of a kind, and one after a tensor has moved, runs launch by launch, so that every kernel is loaded
  // and all memory is there; the next is captured, in a thread that can multiply by the library where that has to.
  template <class T>
  void replay_or_run(const StepSettings& settings, const StepInputs& given, bool draws) {
    const bool are_due = given.penalties_are_due && (settings.penalties.r1 > 0 || settings.penalties.r2 > 0);
    const Key key{given.batch(),
                  given.fake_batch(),
                  given.real.size(0),
                  given.labels.defined() ? given.labels.size(0) : 0,
                  draws,
                  options_.rounding,
                  layer_path(),
                  options_.narrow,
                  choice_,
                  are_due,
                  given.noise_scale > 0};
    Captured& captured = captured_of(key);
    StepInputs& inputs = captured.memory.inputs;
    follow_stream(captured);
    const auto copied = [](Tensor& own, const Tensor& from, bool values) {
      if (!from.defined()) return;
      if (!own.defined() || own.sizes() != from.sizes()) own = at::empty(from.sizes(), from.options());
      if (values) own.copy_(from, /*non_blocking=*/true);
    };
    copied(inputs.real, given.real, true), copied(inputs.labels, given.labels, true);
    copied(inputs.fake, given.fake, true), copied(inputs.fake_labels, given.fake_labels, true);
    copied(inputs.noise, given.noise, !draws);
    inputs.penalties_are_due = are_due, inputs.noise_scale = given.noise_scale;
    const auto all = [&] {
      if (draws) networks_.draw(inputs.noise);
      launch<T>(settings, inputs, captured.memory);
    };
    read_addresses(addresses_);
    if (addresses_ != captured.addresses) captured.has_run = false;
    if (!captured.has_run) captured.graph.reset();
    const bool can_multiply = !captured.uses_library || has_library_handle(given.real.device().index());
    if (captured.graph == nullptr && !(captured.has_run && can_multiply)) {
      captured.has_run = false;
      all();
      captured.addresses = addresses_;
      captured.uses_library = std::any_of(taken_.begin(), taken_.end(), [](const auto& one) { return one.second; });
      captured.has_run = true;
      return;
    }
    if (!can_capture()) return all();
    if (captured.graph == nullptr) {
      for (std::unique_ptr<CaptureStream>& stream : capture_streams_)
        if (stream == nullptr) stream = std::make_unique<CaptureStream>(given.real.device().index());
      struct Capturing {
        explicit Capturing(bool& is) : is(is) { is = true; }
        ~Capturing() { is = false; }
        bool& is;
      };
      const Capturing now(is_capturing_);
      captured.graph = capture(*capture_streams_[0], networks_.generator, all);
    }
    for (const std::unique_ptr<CaptureStream>& stream : capture_streams_)
      stream->is_replayed_on(at::cuda::getCurrentCUDAStream());
    captured.graph->replay();
  }

  // Memory that was made on one stream and is used on another must not be handed out again before the work there is
  // done.
  void follow_stream(Captured& captured) {
    const c10::cuda::CUDAStream stream = at::cuda::getCurrentCUDAStream();
    if (captured.stream == stream.stream() && updates_stream_ == stream.stream()) return;
    const auto record = [&](std::optional<cudaStream_t>& last, const std::vector<const Tensor*>& tensors) {
      const bool moved = last && *last != stream.stream();
      last = stream.stream();
      for (const Tensor* tensor : tensors)
        if (moved && tensor->defined())
          c10::cuda::CUDACachingAllocator::recordStream(tensor->storage().data_ptr(), stream);
    };
    const Updates& updates = own_updates_;
    record(updates_stream_,
           {&updates.due, &updates.steps, &updates.counts, &updates.sums, &updates.odd_label, &updates.noise_scale});
    const Memory& memory = captured.memory;
    std::vector<const Tensor*> tensors = {&memory.inputs.real,
                                          &memory.inputs.noise,
                                          &memory.inputs.labels,
                                          &memory.inputs.fake,
                                          &memory.inputs.fake_labels,
                                          &memory.draws.instance_noise[0],
                                          &memory.draws.instance_noise[1],
                                          &memory.draws.mix,
                                          &memory.workspace};
    for (const std::vector<Tensor>& masks : memory.masks)
      for (const Tensor& mask : masks) tensors.push_back(&mask);
    for (const Tensor& draws : memory.gumbel) tensors.push_back(&draws);
    const auto of_launches = [&](const StepMemory& own) {
      tensors.push_back(&own.counters);
      for (const Tensor& scratch : own.scratch) tensors.push_back(&scratch);
    };
    of_launches(memory.launches);
    for (const StepMemory& branch : memory.branches) of_launches(branch);
    record(captured.stream, tensors);
  }

  std::optional<cudaStream_t> updates_stream_;
  std::array<std::unique_ptr<CaptureStream>, 1 + branch_count> capture_streams_;  // go after the graphs
  bool is_capturing_ = false;
  std::vector<std::unique_ptr<Captured>> captured_;  // the latest first
  std::vector<void*> addresses_;
#endif

  StepNetworks& networks_;
  cuda::StepOptions options_;
  std::map<ProductKey, bool> taken_;
  Updates own_updates_;
  std::unique_ptr<HostWord> odd_label_;  // where there are classes
  Memory own_memory_;                    // where there are no graphs
  // Of the step under way:
  Updates* updates_ = nullptr;
  Memory* memory_ = nullptr;
  const StepScope* here_ = nullptr;
  const StepChoice* choice_ = nullptr;
};

}  // namespace fastgan::bindings
