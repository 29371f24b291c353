// What Booster saves and loads; see booster.h. Everything goes through the writer of checkpoints, which takes each
// rank's own parts: one file or folder of weights for other tools is made of such a checkpoint, so that no rank ever
// gathers.
#include <cerrno>
#include <nlohmann/json.hpp>

#include "core/base/file.h"
#include "core/base/file_error.h"
#include "core/base/json.h"
#include "formats/export_weights.h"
#include "strategy/booster.h"
#include "strategy/checkpoint/fill.h"
#include "strategy/checkpoint/save_group.h"
#include "strategy/checkpoint/training_state.h"

namespace castor::strategy {
namespace {

constexpr std::uint64_t kMebibyte = std::uint64_t{1} << 20;

/// `path` without slashes at its end, so that what is written on the way gets a name beside it and not inside.
std::string without_slashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::string name = file_name_of(path);
  if (name.empty() || name == "." || name == "..") {
    throw ConfigError(cat("save_model: expected the name of a file or folder to write, got ", quote_name(path, 4096)),
                      "path");
  }
  return path;
}

/// Throws IoError if at `path`, or at the folder `whole` beside it, is what must not be replaced.
void check_target(const std::string& path, const std::string& whole, const SaveModelOptions& options) {
  formats::check_replaceable(whole);
  if (options.shard) {
    formats::check_replaceable(path);
  } else if (is_directory(path)) {
    throw IoError(cat("save_model to ", quote_name(path, 4096),
                      ": expected the name of a file, this is a folder; name a file in it, or save with shard"),
                  path, EISDIR);
  }
}

/// Removes the checkpoint `pieces`, its manifest last: until then the next save knows by it whose files these are.
void remove_pieces(const std::string& pieces) {
  for (const DirectoryEntry& entry : list_directory(pieces)) {
    if (entry.name != formats::kManifestName) remove_tree(join_path(pieces, entry.name));
  }
  sync_directory(pieces);
  remove_tree(pieces);
}

/// Makes of the checkpoint `pieces` the one file or folder `path` for other tools, by way of the folder `whole`.
void export_pieces(const std::string& pieces, const std::string& whole, const std::string& path,
                   const SaveModelOptions& options) {
  const formats::TensorSource source = formats::open_tensor_source(pieces);
  formats::ExportOptions how;
  how.max_shard_bytes =
      options.shard ? static_cast<std::uint64_t>(options.size_per_shard) * kMebibyte : ~std::uint64_t{0};
  how.replace = true;
  formats::export_weights(formats::list_weights(source, {}, options.dtype, /*masters=*/true), whole, how);
  check_target(path, whole, options);  // again: others may have put something there while this was written
  if (options.shard) {
    formats::replace_export(whole, path);
  } else {
    rename_file(join_path(whole, formats::kExportName), path);
    sync_directory(directory_of(path));
    remove_tree(whole);
  }
  remove_pieces(pieces);
}

}  // namespace

void Booster::save_together(SaveRequest request) {
  SaveGroup(comm_).together([&] {
    if (is_main() || request.ranks != nullptr) saver_.save(std::move(request));
  });
}

void Booster::save_model(BoostedModel& model, const std::string& to, const SaveModelOptions& options) {
  if (!options.use_safetensors) {
    throw ConfigError(
        "save_model: use_safetensors false asks for a pickle, which are read but not written; PyTorch, too, reads "
        "safetensors",
        "use_safetensors");
  }
  if (options.size_per_shard < 1) {
    throw ConfigError(cat("save_model: size_per_shard must be at least 1 MiB, got ", options.size_per_shard),
                      "size_per_shard");
  }
  saver_.wait();
  const std::string path = without_slashes(to), pieces = path + ".pieces", whole = path + ".whole";
  SaveGroup(comm_).together([&] {
    if (is_main()) check_target(path, whole, options);
  });
  SaveRequest request;
  request.folder = pieces;
  request.tensors = weight_tensors(model.module(), model.optimizer(), is_main());
  if (model.optimizer() != nullptr) {
    for (StateTensor& state : optimizer_tensors(*model.optimizer(), is_main())) {
      if (state.role == kMasterRole) request.tensors.push_back(std::move(state));
    }
  }
  for (const auto& [other, first] : model.module().aliases()) request.aliases[other] = first;
  request.state = "{}\n";
  request.ranks = save_ranks_.get();
  request.asynchronous = options.use_async;
  request.committed = [whole, path, options](const std::string& written) {
    export_pieces(written, whole, path, options);
  };
  save_together(std::move(request));
}

LoadReport Booster::load_model(BoostedModel& model, const std::string& path, bool strict) {
  saver_.wait();
  LoadOptions options;
  options.strict = strict;
  LoadReport report =
      load_weights(model.module(), formats::export_at(path), options, posix_file_system(), model.weight_places());
  model.weights_loaded(false);
  return report;
}

void Booster::save_optimizer(BoostedOptimizer& optimizer, const std::string& path, bool use_async) {
  if (optimizer.window_position() != 0) {
    throw InternalError(cat("save_optimizer: called after ", optimizer.window_position(),
                            " micro-steps of a window, whose sums are not saved; save after step"));
  }
  saver_.wait();
  Json state;
  state["optimizer"] = optimizer_state(optimizer);
  SaveRequest request;
  request.folder = path;
  request.tensors = optimizer_tensors(optimizer, is_main());
  request.state = dump_json(state, 2) + "\n";
  request.ranks = save_ranks_.get();
  request.asynchronous = use_async;
  save_together(std::move(request));
}

void Booster::load_optimizer(BoostedOptimizer& optimizer, const std::string& path) {
  saver_.wait();
  const LoadSource source = LoadSource::open(path);
  const Json state = parse_json(source.state_text(), source.path);
  if (!state.is_object() || !state.contains("optimizer")) {
    throw FormatError(cat("load_optimizer from ", path,
                          ": it holds no optimizer; give what save_optimizer or "
                          "save_checkpoint wrote"),
                      path, 0);
  }
  const std::vector<Fill> fills = match_optimizer(source, state, optimizer);
  load_optimizer_state(state, source.path, optimizer);
  fill(source, fills);
}

void Booster::save_lr_scheduler(const ParamScheduler& scheduler, const std::string& path) {
  SaveGroup(comm_).together([&] {
    if (is_main()) write_file_atomically(path, dump_json(scheduler.state_dict(), 2) + "\n");
  });
}

void Booster::load_lr_scheduler(ParamScheduler& scheduler, const std::string& path) {
  scheduler.load_state_dict(parse_json(read_text_file(path), path));
}

}  // namespace castor::strategy
