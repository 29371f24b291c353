// The argument surface of `castor train`.
//
// Delicate: `--resume` takes a value or none, so a CONFIG written behind it would be taken for the value; the message
// for a missing CONFIG must say so.
#include "strategy/cli/train.h"

#include <filesystem>
#include <memory>
#include <utility>

#include "core/base/error.h"

namespace castor::strategy {
namespace {

constexpr const char* kAuto = "auto";

void lay_over(ConfigNode& config, const std::string& key, ConfigNode value, const std::string& option) {
  value.set_mark({std::make_shared<const std::string>(option), 0});
  config.set(key, std::move(value));
}

}  // namespace

ConfigNode load_train_config(const TrainArguments& arguments) {
  ConfigNode config = load_config(static_cast<const ConfigArguments&>(arguments));
  if (arguments.resume) {
    lay_over(config, "resume", ConfigNode(true), "--resume");
    const bool is_path = *arguments.resume != kAuto;
    lay_over(config, "load_from", is_path ? ConfigNode(*arguments.resume) : ConfigNode(), "--resume");
  }
  if (arguments.launcher) lay_over(config, "launcher", ConfigNode(*arguments.launcher), "--launcher");
  return config;
}

Subcommand train_command(std::function<int(const TrainArguments&, Registry&, std::ostream&)> train) {
  auto arguments = std::make_shared<TrainArguments>();
  Subcommand command;
  command.name = "train";
  command.summary = "train the model of a config";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    declare_config_arguments(*arguments, list);
    list.option_with_implied(
        "--resume", arguments->resume, kAuto, "[auto|PATH]",
        "go on from the last checkpoint of the work_dir, or from PATH (a checkpoint, or the folder of a run); write "
        "CONFIG before it");
    list.choice("--launcher", arguments->launcher, {"none", "pytorch", "slurm", "mpi"}, "how the ranks were started");
  };
  command.run = [arguments, train = std::move(train)](Registry& registry, std::ostream& out) {
    return train(*arguments, registry, out);
  };
  return command;
}

}  // namespace castor::strategy
