// What Booster saves and loads; see booster.h. Everything goes through the writer of checkpoints, which takes each
// rank's own parts: one file or folder of weights for other tools is made of such a checkpoint, so that no rank ever
// gathers.
#include <algorithm>
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
constexpr const char* kReplaced = ".replaced";  ///< behind the name of an earlier folder, for a moment

/// Throws IoError, EEXIST, for a folder that holds anything but an earlier export: its place is not for the taking.
void check_place(const std::string& path) {
  if (!is_directory(path)) return;
  for (const DirectoryEntry& entry : list_directory(path)) {
    if (formats::is_exported_name(entry.name)) continue;
    throw IoError(cat("save_model to ", quote_name(path, 4096), ": it is a folder with ", quote_name(entry.name, 256),
                      ", which no earlier save_model wrote; name another path"),
                  path, EEXIST);
  }
}

/// Moves what was written to where it was asked for. An earlier file is replaced at once; an earlier folder is kept
/// under another name until the new one has its place.
void put_in_place(const std::string& from, const std::string& to) {
  const std::string replaced = to + kReplaced;
  if (is_directory(to)) {
    if (is_directory(replaced)) remove_tree(replaced);
    rename_file(to, replaced);
  }
  rename_file(from, to);
  sync_directory(directory_of(to));
  if (is_directory(replaced)) remove_tree(replaced);
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
  put_in_place(options.shard ? whole : join_path(whole, formats::kExportName), path);
  remove_tree(whole);
  remove_tree(pieces);
}

}  // namespace

void Booster::save_together(SaveRequest request) {
  SaveGroup(comm_).together([&] {
    if (is_main() || request.ranks != nullptr) saver_.save(std::move(request));
  });
}

void Booster::save_model(BoostedModel& model, const std::string& where, const SaveModelOptions& options) {
  const std::string path = where.substr(0, std::max<std::size_t>(where.find_last_not_of('/'), 0) + 1);
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
  SaveGroup(comm_).together([&] {
    if (!is_main()) return;
    check_place(path);
    check_place(path + kReplaced);
  });
  const std::string pieces = path + ".pieces", whole = path + ".whole";
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
  LoadReport report = load_weights(model.module(), path, options, posix_file_system(), model.weight_places());
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
