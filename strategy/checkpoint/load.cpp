// load_weights, the report, and what callbacks see.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/log.h"
#include "strategy/checkpoint.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/training_state.h"
#include "strategy/source/source.h"

namespace castor::strategy {

CheckpointContents::CheckpointContents() : state_(std::make_unique<Json>(Json::object())) {}
CheckpointContents::~CheckpointContents() = default;
CheckpointContents::CheckpointContents(CheckpointContents&&) noexcept = default;
CheckpointContents& CheckpointContents::operator=(CheckpointContents&&) noexcept = default;

std::string LoadReport::text() const {
  std::string lines;
  const auto add = [&lines](const char* label, const std::vector<std::string>& names) {
    for (const std::string& name : names) lines += cat("\n  ", label, ": ", name);
  };
  add("missing", missing);
  add("unexpected", unexpected);
  add("mismatched", mismatched);
  return lines;
}

LoadReport load_weights(const autograd::Module& model, const std::string& source, const LoadOptions& options,
                        FileSystem& files, const WeightPlaces& places) {
  const LoadSource weights = LoadSource::open(source, files);
  const auto model_weights = weights_of(model);
  const Device device = model_weights.empty() ? kCpu : model_weights.front().second.device();
  CheckpointContents contents = read_contents(weights, options.map_location, device, options.callback != nullptr);
  contents.names = revised_names(weights, options.revise_keys);
  if (options.callback) options.callback(contents);

  LoadReport report;
  const std::vector<Fill> fills = match_weights(weights, model, contents.names, report, places);
  if ((options.strict && !report.fits()) || (report.loaded == 0 && !model_weights.empty())) {
    throw FormatError(cat("load weights from ", shown_source(source),
                          report.loaded == 0 ? ": nothing in it fits the model:" : ": the file does not fit the model:",
                          report.text()),
                      weights.path, 0);
  }
  fill(weights, fills);
  return report;
}

}  // namespace castor::strategy
