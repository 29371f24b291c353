// The argument surface of `castor test`.
#include "strategy/cli/test.h"

#include <memory>
#include <utility>

namespace castor::strategy {

ConfigNode load_test_config(const TestArguments& arguments) {
  ConfigNode config = load_config(static_cast<const ConfigArguments&>(arguments));
  if (arguments.load_from) {
    ConfigNode value(*arguments.load_from);
    value.set_mark({std::make_shared<const std::string>("--load-from"), 0});
    config.set("load_from", std::move(value));
  }
  return config;
}

Subcommand test_command(std::function<int(const TestArguments&, Registry&, std::ostream&)> test) {
  auto arguments = std::make_shared<TestArguments>();
  Subcommand command;
  command.name = "test";
  command.summary = "measure a trained model on the test data of a config";
  command.configure = [arguments](ArgumentList& list) {
    *arguments = {};
    declare_config_arguments(*arguments, list);
    list.option("--load-from", arguments->load_from, "PATH",
                "the weights; left out: the config's load_from, or else the last saved in the work_dir");
  };
  command.run = [arguments, test = std::move(test)](Registry& registry, std::ostream& out) {
    return test(*arguments, registry, out);
  };
  return command;
}

}  // namespace castor::strategy
