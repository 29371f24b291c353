// Steps that host and GPU share: the bits of one processor's, whoever took which stretch, and nobody reads what is
// still on its way. On the fake device, whose side queues work as late as they may, and on GPUs.
#include "autograd/optim/streamed_steps.h"

#include <functional>
#include <memory>

#include <doctest/doctest.h>

#include "autograd/optim/adam.h"
#include "autograd/optim/adamw8bit.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/lion.h"
#include "autograd/optim/sgd.h"
#include "autograd/optim/stepper.h"
#include "core/ops/cast.h"
#include "core/ops/random.h"
#include "tests/support/op_check.h"

using namespace castor;
using namespace castor::autograd;

namespace {

using MakeOptimizer = std::function<std::unique_ptr<Optimizer>()>;

template <class O, class Config>
MakeOptimizer make(const Config& config) {
  return [config] { return std::make_unique<O>(config); };
}

enum class GradientPlace { in_weights, beside_weights, on_host };

/// Parts of several parameters, some shorter than a stretch, whose states are on the host.
struct Shared {
  std::unique_ptr<Optimizer> optimizer;
  Device device;
  std::vector<Tensor> weights;  ///< by part
  std::unique_ptr<Stepper> stepper;

  Shared(const MakeOptimizer& make_optimizer, Device where, DType dtype, const Stepper::Options& options,
         const std::vector<std::int64_t>& counts = {9 * 1024 + 77, 1024, 20, 6 * 1024, 5 * 1024 + 1})
      : optimizer(make_optimizer()), device(where) {
    std::vector<Part> parts;
    std::uint64_t key = 0;
    for (const std::int64_t count : counts) {
      Variable variable(Tensor::zeros({count}, dtype, device), true);
      variable.set_name(cat("w", key));
      weights.push_back(random(count, dtype, ++key));
      parts.emplace_back(variable, 0, 0, weights.back());
      parts.back().states_on = kHost;
    }
    stepper = std::make_unique<Stepper>(*optimizer, std::move(parts), options);
  }

  /// The same numbers on every device.
  Tensor random(std::int64_t count, DType dtype, std::uint64_t key) const {
    const Tensor x = Tensor::empty({count}, dtype);
    fill_normal(x, {key, 3});
    return to_device(x, device);
  }

  void step(std::uint64_t seed, GradientPlace place) {
    stepper->finish();  // what waits in the weights' place is overwritten now
    for (std::size_t i = 0; i < weights.size(); ++i) {
      Tensor gradient = random(weights[i].numel(), weights[i].dtype(), 100 * seed + i);
      if (place == GradientPlace::in_weights) {
        copy_into(gradient, weights[i]);
        gradient = weights[i];
      } else if (place == GradientPlace::on_host) {
        const Tensor there = Tensor::empty(gradient.shape(), gradient.dtype(), kHost);
        copy_across(gradient, there);
        gradient = there;
      }
      stepper->parts()[i].gradient = gradient;
    }
    stepper->step(0.5);
    stepper->zero_grad();
  }

  std::vector<std::vector<float>> values() {
    std::vector<std::vector<float>> all;
    for (auto& [name, piece] : stepper->named_states())
      all.push_back(cast(piece.tensor, DType::f32).to_vector<float>());
    for (std::size_t i = 0; i < weights.size(); ++i) all.push_back(at(i));
    return all;
  }
  std::vector<float> at(std::size_t part) const {
    return cast(to_device(weights[part], kCpu), DType::f32).to_vector<float>();
  }
};

std::vector<Device> gpus() {
  std::vector<Device> found;
  for (const Device device : test::test_devices()) {
    if (device.is_cuda()) found.push_back(device);
  }
  return found;
}

TEST_CASE("a step shared by host and GPU has the bits of the host's, for each optimizer and place of gradients") {
  AdamWConfig largest;
  largest.amsgrad = true;
  SGDConfig momentum;
  momentum.momentum = 0.9;
  const std::pair<const char*, MakeOptimizer> optimizers[] = {{"AdamW", make<AdamW>(AdamWConfig{})},
                                                              {"AdamW, amsgrad", make<AdamW>(largest)},
                                                              {"AdamW8bit", make<AdamW8bit>(AdamW8bitConfig{})},
                                                              {"Lion", make<Lion>(LionConfig{})},
                                                              {"SGD", make<SGD>(momentum)}};
  for (const Device device : gpus()) {
    for (const auto& [name, optimizer] : optimizers) {
      for (const DType dtype : {DType::bf16, DType::f32}) {
        for (const GradientPlace place :
             {GradientPlace::in_weights, GradientPlace::beside_weights, GradientPlace::on_host}) {
          if (dtype == DType::f32 && place == GradientPlace::in_weights) continue;  // they have no masters
          for (const std::int64_t cut : {0, 1024}) {
            CAPTURE(device);
            CAPTURE(std::string(name));
            CAPTURE(dtype_name(dtype));
            CAPTURE(static_cast<int>(place));
            CAPTURE(cut);
            const Stepper::Options options{.cut_elements = cut, .may_be_late = true, .stretch_elements = 2048};
            Shared host(optimizer, kCpu, dtype, options), both(optimizer, device, dtype, options);
            for (std::uint64_t seed = 1; seed <= 3; ++seed) {
              for (Shared* each : {&host, &both}) each->step(seed, place);
              if (seed == 2) both.stepper->finish(3, 1);  // another order than that of the parts
            }
            CHECK(both.values() == host.values());
            CHECK(host.stepper->shared_elements().by_gpu == 0);
            CHECK(both.stepper->shared_elements().by_gpu > 0);
            CHECK(both.stepper->shared_elements().by_gpu < 3 * (9 + 1 + 6 + 6) * 1024);
          }
        }
      }
    }
  }
}

TEST_CASE("who reads a part's weights on the device after it was finished finds all of its stretches") {
  for (const Device device : gpus()) {
    const Stepper::Options options{.may_be_late = true, .stretch_elements = 1024};
    Shared host(make<AdamW>(AdamWConfig{}), kCpu, DType::bf16, options);
    Shared both(make<AdamW>(AdamWConfig{}), device, DType::bf16, options);
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
      for (Shared* each : {&host, &both}) each->step(seed, GradientPlace::in_weights);
      for (std::size_t part = 0; part < host.weights.size(); ++part) {
        for (Shared* each : {&host, &both}) each->stepper->finish(part, 1);
        CHECK(both.at(part) == host.at(part));
      }
    }
  }
}

TEST_CASE("a large part behind many small ones is shared when these have been finished") {
  std::vector<std::int64_t> counts(20, 24);
  counts.push_back(64 * 1024);  // more than the host asks for ahead
  for (const Device device : gpus()) {
    const Stepper::Options options{.may_be_late = true, .stretch_elements = 1024};
    Shared host(make<AdamW>(AdamWConfig{}), kCpu, DType::bf16, options, counts);
    Shared both(make<AdamW>(AdamWConfig{}), device, DType::bf16, options, counts);
    for (Shared* each : {&host, &both}) {
      each->step(1, GradientPlace::on_host);
      for (std::size_t part = 0; part < counts.size(); ++part) each->stepper->finish(part, 1);
    }
    CHECK(both.values() == host.values());
    CHECK(both.stepper->shared_elements().by_gpu > 0);
  }
}

TEST_CASE("what a streamed step reads on the host lives until its copies are over") {
  for (const Device device : gpus()) {
    constexpr std::int64_t kCount = 4096;
    const AdamW optimizer{AdamWConfig{}};
    const std::string name = "w";
    const auto on_host = [] { return Tensor::zeros({kCount}, DType::f32, kHost); };
    Range range{&name, Shape{kCount}, 0, kCount, 0, on_host(), on_host(), {}, {}};
    range.copy = Tensor::zeros({kCount}, DType::bf16, device);
    for (const char* state : {"exp_avg", "exp_avg_sq"}) range.states[state] = on_host();
    StreamedSteps steps(device, StreamedSteps::moved_bytes(range, device));
    const std::weak_ptr<Storage> gradient = range.gradient.storage();
    steps.step(optimizer, range, {}, backend(device).record());
    range = {};
    CHECK(!gradient.expired());
    steps.wait();
    CHECK(gradient.expired());
  }
}

TEST_CASE("a shared step that fails goes on where it was, and steps nothing twice") {
  for (const Device device : gpus()) {
    const Stepper::Options options{.may_be_late = true, .stretch_elements = 1024};
    Shared host(make<AdamW>(AdamWConfig{}), kCpu, DType::bf16, options);
    Shared both(make<AdamW>(AdamWConfig{}), device, DType::bf16, options);
    for (Shared* each : {&host, &both}) each->step(1, GradientPlace::in_weights);
    int calls = 0;
    both.stepper->set_before_update([&](const Part&, const auto&) {
      if (++calls == 3) throw IoError("disk full", "states", 28);
    });
    CHECK_THROWS_AS(both.stepper->finish(), IoError);
    both.stepper->finish();
    CHECK(calls == 6);  // five parts, one of them twice
    CHECK(both.values() == host.values());
  }
}

TEST_CASE("what needs statistics of whole parts, or lies elsewhere, is not shared") {
  for (const Device device : gpus()) {
    const Stepper::Options options{.stretch_elements = 1024};
    Shared lamb(make<Lamb>(LambConfig{}), device, DType::bf16, options);
    lamb.step(1, GradientPlace::beside_weights);
    CHECK(lamb.stepper->shared_elements().by_gpu == 0);
    Shared on_host(make<AdamW>(AdamWConfig{}), kCpu, DType::bf16, options);
    on_host.step(1, GradientPlace::beside_weights);
    CHECK(on_host.stepper->shared_elements().by_gpu == 0);
    for (const std::int64_t elements : {0, 1000})
      CHECK_THROWS_AS(Shared(make<AdamW>(AdamWConfig{}), device, DType::bf16, {.stretch_elements = elements}),
                      InternalError);
  }
}

}  // namespace
