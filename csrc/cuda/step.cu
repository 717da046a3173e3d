// The order of a step's launches. The parts of D's batch lie one after the other: real data, fakes, and what lies
// between them. Where nothing is put beside or on them, G writes its output there.
#include "step.h"
#include "step_penalties.h"

namespace fastgan::cuda {

namespace {

// The memory and the launches of one half of a step.
template <class T>
class Half {
 public:
  Half(const Context& context, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
       const StepOptions& options, const AdamPreparation<T>& adam)
      : context_(context),
        problem_(problem),
        sums_(sums),
        options_(options),
        adam_(adam),
        parts_(parts_of(problem)),
        is_ahead_(generates_ahead(problem)) {
    StepArena arena(workspace);
    buffers_ = lay_out(context, arena, problem);
  }

  void update_discriminator() const {
    const Penalized penalized = penalized_of(problem_);
    const StepNetwork<T>& network = problem_.discriminator;
    const bool is_alone = problem_.generator.count == 0;
    if (is_alone) {
      pack(rows_of_fakes(problem_.fake), rows_of_real());
    } else {
      if (is_ahead_)
        pack(rows_of_noise(0), rows_of_noise(1), rows_of_real());
      else
        pack(rows_of_noise(0), rows_of_real());
      generator(buffers_.generator, (is_ahead_ ? 2 : 1) * problem_.batch).forward();
      if (!fakes_are_in_place(problem_)) pack(rows_of_fakes(output(buffers_.generator)));
    }
    if (problem_.penalties.gp > 0)
      mix_rows<T>(context_, parts_.rows_of(2), network.in(), network.in() / problem_.pac, problem_.real.width,
                  problem_.mix, buffers_.discriminator.input, buffers_.fakes,
                  buffers_.discriminator.input + parts_.begin[2] * network.in());
    const Passes<T> passes = discriminator(buffers_.discriminator, {parts_, 0});
    passes.forward_to_loss();
    StepLoss<T> loss = loss_of(parts_, buffers_.discriminator);
    loss.judged = 2;
    for (const int half : {0, 1}) loss.part[half] = problem_.discriminator_part(half);
    if (problem_.loss.is_paired) loss.pairs[0] = 1, loss.pairs[1] = -1;
    loss.loss = &sums_->d_loss, loss.score[0] = &sums_->real_score, loss.score[1] = &sums_->fake_score;
    if (!penalized.any()) {
      loss.penalty = &sums_->penalty;
      loss.is_last_of_step = is_alone;
      judge(passes, loss, 0, parts_.count);
      passes.backward_from_loss({}, true, T(0));
    } else {
      const PenalizedUpdate<T> update(context_, problem_, buffers_, penalized, options_);
      update.say_start(loss);
      judge(passes, loss, 0, penalized.is_smooth ? 0 : parts_.count);
      update.run(&sums_->penalty, is_alone);
    }
    clip(network, buffers_.discriminator, T(0));
  }

  void update_generator(bool fresh) const {
    NetworkBuffers<T> own_buffers = buffers_.generator;
    if (is_ahead_) {
      Parts batches;
      for (int i = 0; i < 2; ++i) batches.add(problem_.batch);
      own_buffers = own_buffers.from(problem_.generator, batches, 1);
    }
    const Passes<T> own = generator(own_buffers, problem_.batch);
    const bool is_paired = problem_.loss.is_paired;
    // What the D step has done to its input.
    const Penalized penalized = penalized_of(problem_);
    const auto is_changed = [&](int part) {
      return problem_.instance_noise[part] != nullptr || (penalized.has(part) && !penalized.is_smooth);
    };
    if (fresh && !is_ahead_) {
      pack(rows_of_noise(0));
      own.forward(/*joins=*/true);  // the updates of D read its input, where the output goes
    }
    context_.join();
    if (is_paired && is_changed(0)) pack(rows_of_real());
    const bool is_in_place = fakes_are_in_place(problem_);
    if (!is_in_place && (fresh || is_changed(1))) pack(rows_of_fakes(output(own_buffers)));

    // D judges the fakes, of pairs the real data too; its gradient goes through the fakes alone.
    const Parts judged = is_paired ? parts_.some(0, 2) : parts_.some(1, 2);
    NetworkBuffers<T> buffers = buffers_.discriminator;
    const StepNetwork<T>& network = problem_.discriminator;
    if (!is_paired) buffers.input = buffers_.fakes;
    if (is_ahead_ && is_in_place) buffers.input += parts_.rows_of(1) * network.in();
    const Passes<T> judging = discriminator(buffers, {judged, 0});
    judging.forward_to_loss();
    StepLoss<T> loss = loss_of(judged, buffers);
    loss.judged = judged.count;
    loss.part[0] = loss.part[1] = problem_.loss.generator;
    if (is_paired) loss.pairs[0] = -1, loss.pairs[1] = 1;
    loss.loss = &sums_->g_loss;
    loss.is_last_of_step = true;
    judge(judging, loss, is_paired ? 1 : 0, judged.count);
    const Passes<T> of_fakes = is_paired ? discriminator(buffers.from(network, judged, 1), {judged.some(1, 2), 1})
                                         : discriminator(buffers, {judged, 0});
    const LayerBuffers<T>& last = own_buffers.layers.back();
    const ActivationArguments activation = problem_.generator.layers[problem_.generator.count - 1].activation;
    const int64_t data = problem_.generator.out();
    if (buffers_.by_input != nullptr) {
      of_fakes.backward_from_loss({.grad = buffers_.by_input, .width = network.in()}, false, T(0));
      unpack_gradient<T>(context_, problem_.batch, data + problem_.classes, data, activation, buffers_.by_input,
                         last.saved, last.grad_z);
    } else {
      // Rows of several samples without labels are those samples' rows.
      of_fakes.backward_from_loss({last.grad_z, last.saved, activation, problem_.pac * data}, false, T(0));
    }
    own.backward({}, true, T(problem_.average_rate));
    clip(problem_.generator, buffers_.generator, T(problem_.average_rate));
  }

 private:
  Passes<T> generator(const NetworkBuffers<T>& buffers, int64_t batch) const {
    PassRows rows;
    rows.parts.add(batch);
    return Passes<T>(context_, problem_.generator, buffers, rows, options_);
  }
  Passes<T> discriminator(const NetworkBuffers<T>& buffers, const PassRows& rows) const {
    return Passes<T>(context_, problem_.discriminator, buffers, rows, options_);
  }

  // The loss, and with it, where that is one launch, the last layer before it and the gradient below that layer, for
  // the rows of some of the parts.
  void judge(const Passes<T>& passes, const StepLoss<T>& loss, int first, int end) const {
    if (passes.has_head())
      step_head(context_, passes.head(loss, first, end));
    else
      step_loss(context_, loss);
  }

  StridedRows<T> output(const NetworkBuffers<T>& of_generator) const {
    const int64_t data = problem_.generator.out();
    return {of_generator.layers.back().y, data, data, 1};
  }

  // Of this step, and of the one that follows.
  PackedRows<T> rows_of_noise(int64_t number) const {
    StridedRows<T> noise = problem_.noise;
    const int64_t row = number * problem_.batch;
    noise.data += row * noise.row_stride;
    return {noise, problem_.batch, buffers_.generator.input + row * problem_.generator.in(), problem_.labels};
  }
  PackedRows<T> rows_of_real() const {
    return {
        problem_.real,       problem_.batch, buffers_.discriminator.input, problem_.labels, problem_.instance_noise[0],
        options_.noise_scale};
  }
  PackedRows<T> rows_of_fakes(const StridedRows<T>& rows) const {
    return {rows,
            problem_.fake_batch,
            buffers_.fakes,
            problem_.fake_labels,
            problem_.instance_noise[1],
            options_.noise_scale};
  }

  template <class... Rows>
  void pack(const Rows&... rows) const {
    const PackedRows<T> all[] = {rows...};
    pack_rows(context_, all, int(sizeof...(rows)), problem_.classes, options_.odd_labels);
  }

  StepLoss<T> loss_of(const Parts& parts, const NetworkBuffers<T>& buffers) const {
    const LayerBuffers<T>& last = buffers.layers.back();
    StepLoss<T> loss{};
    loss.parts = parts;
    loss.logits = last.y, loss.saved = last.saved, loss.grad_z = last.grad_z;
    loss.activation = problem_.discriminator.layers[problem_.discriminator.count - 1].activation;
    loss.scores_probability = problem_.loss.scores_probability;
    loss.odd_label = options_.odd_labels.found;
    loss.adam = adam_;
    return loss;
  }

  // The updates, where gradients were left in memory to be clipped.
  void clip(const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, T average_rate) const {
    if (problem_.clip_norm == 0) return;
    context_.join();
    std::vector<Update<T>> updates;
    for (int l = 0; l < network.count; ++l) {
      const StepLayer<T>& layer = network.layers[l];
      const LayerBuffers<T>& own = buffers.layers[l];
      const int64_t n = layer.kind == LayerKind::linear ? layer.out * layer.in : layer.out;
      if (layer.weight.is_updated()) updates.push_back({layer.weight, own.grad_weight, n});
      if (layer.bias.is_updated()) updates.push_back({layer.bias, own.grad_bias, layer.out});
    }
    if (!updates.empty())
      update_clipped(context_, updates.data(), int(updates.size()), problem_.clip_norm, average_rate);
  }

  const Context& context_;
  const StepProblem<T>& problem_;
  StepSums<T>* const sums_;
  const StepOptions& options_;
  const AdamPreparation<T>& adam_;
  const Parts parts_;
  const bool is_ahead_;
  Buffers<T> buffers_;
};

}  // namespace

template <class T>
size_t step_workspace(const Context& context, const StepProblem<T>& problem) {
  StepArena arena(nullptr);
  lay_out(context, arena, problem);
  return arena.used();
}

template <class T>
void discriminator_step(const Context& context, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
                        const StepOptions& options, const AdamPreparation<T>& adam) {
  Half<T>(context, problem, workspace, sums, options, adam).update_discriminator();
}

template <class T>
void generator_step(const Context& context, const StepProblem<T>& problem, void* workspace, bool fresh,
                    StepSums<T>* sums, const StepOptions& options, const AdamPreparation<T>& adam) {
  Half<T>(context, problem, workspace, sums, options, adam).update_generator(fresh);
}

#define FASTGAN_INSTANTIATE(T)                                                                                        \
  template size_t step_workspace<T>(const Context&, const StepProblem<T>&);                                           \
  template void discriminator_step<T>(const Context&, const StepProblem<T>&, void*, StepSums<T>*, const StepOptions&, \
                                      const AdamPreparation<T>&);                                                     \
  template void generator_step<T>(const Context&, const StepProblem<T>&, void*, bool, StepSums<T>*,                   \
                                  const StepOptions&, const AdamPreparation<T>&);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
