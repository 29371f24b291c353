// Sources that need no net: paths, file URLs, names of models, refusals, and the URLs' parts. Secrets in a source must
// not come back in any text.
#include "strategy/source/source.h"

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>

#include <doctest/doctest.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/file_memory.h"
#include "strategy/source/sha256.h"
#include "strategy/source/url.h"

namespace castor::strategy {
namespace {

bool holds(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// The text of the ConfigError that an action ends in.
template <class Action>
std::string config_error_of(Action action) {
  try {
    action();
  } catch (const ConfigError& error) {
    return error.what();
  }
  FAIL("no ConfigError came");
  return "";
}

std::string refusal_of(const std::string& source, const SourceOptions& options = {}) {
  MemoryFileSystem files;
  return config_error_of([&] { resolve_source(source, options, files); });
}

/// Sets an environment variable (null: none) until the scope ends.
class Environment {
 public:
  Environment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;
  ~Environment() { set(before_ ? before_->c_str() : nullptr); }

 private:
  void set(const char* value) {
    if (value != nullptr) {
      setenv(name_, value, 1);
    } else {
      unsetenv(name_);
    }
  }
  const char* name_;
  std::optional<std::string> before_;
};

TEST_CASE("a local path is itself, relative or not, file or folder, and a missing one is named") {
  MemoryFileSystem files;
  make_directories("/runs/iter_10", files);
  write_file_atomically("/runs/a b.pth", "weights", files);
  CHECK(resolve_source("/runs/a b.pth", {}, files) == "/runs/a b.pth");
  CHECK(resolve_source("runs/iter_10", {}, files) == "runs/iter_10");
  CHECK(resolve_source("file:///runs/a%20b.pth", {}, files) == "/runs/a b.pth");
  CHECK(resolve_source("FILE://localhost/runs/iter_10", {}, files) == "/runs/iter_10");
  for (const std::string source : {"/runs/b.pth", "file:///runs/b.pth"}) {
    try {
      resolve_source(source, {}, files);
      FAIL("a missing file was found");
    } catch (const IoError& error) {
      CHECK(error.code == ENOENT);
      CHECK(error.path == "/runs/b.pth");
      CHECK(holds(error.what(), "/runs/b.pth"));
    }
  }
  CHECK(holds(refusal_of("file://server/runs/a.pth"), "absolute path on this machine"));
  CHECK(holds(refusal_of("file:///runs/%zz"), "hexadecimal"));
  CHECK(holds(refusal_of("file:///runs/%00"), "hexadecimal"));
  CHECK(holds(refusal_of(""), "empty"));
}

TEST_CASE("other schemes are refused by name, with what is supported and without what follows") {
  for (const std::string scheme : {"s3", "petrel", "modelcloud", "huggingface", "ftp", "cluster:s3", "modelzoo"}) {
    const std::string text = refusal_of(scheme + "://key:secret@bucket/weights.pth");
    INFO(text);
    CHECK(holds(text, "\"" + scheme + "\" is not supported"));
    for (const char* known : {"local path", "file://", "http://", "https://", "torchvision://", "open-mmlab://"}) {
      CHECK(holds(text, known));
    }
    CHECK_FALSE(holds(text, "secret"));
    CHECK_FALSE(holds(text, "bucket"));
  }
  CHECK(has_scheme("s3://a"));
  CHECK_FALSE(has_scheme("a/b://c"));
  CHECK_FALSE(has_scheme("c:/weights.pth"));
}

TEST_CASE("the built-in names cover torchvision's classifiers and MMEngine's list") {
  const ModelUrls models;
  CHECK(models.find("torchvision", "resnet50") == "https://download.pytorch.org/models/resnet50-0676ba61.pth");
  CHECK(models.find("torchvision", "resnet50.default") == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth");
  CHECK(models.find("torchvision", "resnet50.imagenet1k_v1") == models.find("torchvision", "resnet50"));
  CHECK(models.find("torchvision", "vgg16.default") == models.find("torchvision", "vgg16.imagenet1k_v1"));
  for (const char* name : {"alexnet", "resnet18", "resnet34", "resnet101", "resnet152", "vgg19_bn", "mobilenet_v2",
                           "densenet121", "squeezenet1_1", "shufflenetv2_x0.5", "vit_b_16"}) {
    CHECK(models.find("torchvision", name).starts_with("https://download.pytorch.org/models/"));
  }
  CHECK(models.find("open-mmlab", "detectron2/resnet50_caffe") ==
        "https://download.openmmlab.com/pretrain/third_party/resnet50_msra-5891d200.pth");
  CHECK(models.find("openmmlab", "resnet50_caffe") == models.find("open-mmlab", "detectron/resnet50_caffe"));
  CHECK(models.names("torchvision").size() > 200);
  CHECK(models.names("open-mmlab").size() == 50);
  for (const char* hub : {"torchvision", "open-mmlab"}) {
    for (const std::string& name : models.names(hub)) {
      const Url url = parse_url(models.find(hub, name));
      CHECK(url.scheme == "https");
      CHECK(url.file_name.ends_with(".pth"));
    }
  }
}

TEST_CASE("an unknown name suggests the nearest") {
  const std::string text = refusal_of("torchvision://resnet_50");
  CHECK(holds(text, "torchvision://resnet_50"));
  CHECK(holds(text, "did you mean \"resnet50\"?"));
  CHECK(holds(refusal_of("openmmlab://vgg16_cafe"), "vgg16_caffe"));
  CHECK_FALSE(holds(refusal_of("torchvision://a-name-like-nothing-there"), "did you mean"));
}

TEST_CASE("users add names, in code and by a JSON file") {
  MemoryFileSystem files;
  make_directories("/shared/weights", files);
  write_file_atomically("/shared/weights/own.pth", "own", files);
  write_file_atomically("/shared/urls.json", R"({
    "own/model": "weights/own.pth",
    "torchvision": {"resnet50": "file:///shared/weights/own.pth"},
    "openmmlab": {"other": "/shared/weights/own.pth"}})",
                        files);
  SourceOptions options;
  options.model_urls = "/shared/urls.json";
  CHECK(resolve_source("open-mmlab://own/model", options, files) == "/shared/weights/own.pth");
  CHECK(resolve_source("torchvision://resnet50", options, files) == "/shared/weights/own.pth");
  CHECK(resolve_source("open-mmlab://other", options, files) == "/shared/weights/own.pth");
  options = {};
  options.models.add("torchvision", "mine", "/shared/weights/own.pth");
  CHECK(resolve_source("torchvision://mine", options, files) == "/shared/weights/own.pth");

  ModelUrls models;
  CHECK(holds(config_error_of([&] { models.add("hub", "a", "/b"); }), "no hub"));
  CHECK(holds(config_error_of([&] { models.add("torchvision", "", "/b"); }), "a name and a location"));
  CHECK(holds(config_error_of([&] { models.add("torchvision", "a", "torchvision://a"); }), "expected http://"));
  const auto read = [&](const std::string& text) {
    write_file_atomically("/bad.json", text, files);
    models.read("/bad.json", files);
  };
  CHECK_THROWS_AS(read("[]"), FormatError);
  CHECK_THROWS_AS(read(R"({"a": 1})"), FormatError);
  CHECK_THROWS_AS(read(R"({"timm": {"a": "https://host/a.pth"}})"), FormatError);
  CHECK_THROWS_AS(read(R"({"good": "https://host/a.pth", "bad": "s3://host/a.pth"})"), ConfigError);
  CHECK_THROWS_AS(models.find("open-mmlab", "good"), ConfigError);  // nothing of a bad file was taken
  options.model_urls = "/missing.json";
  CHECK_THROWS_AS(resolve_source("torchvision://mine", options, files), IoError);
}

TEST_CASE("a digest that is asked for is checked on local files too") {
  MemoryFileSystem files;
  write_file_atomically("/a.pth", "abc", files);
  SourceOptions options;
  options.sha256 = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
  CHECK(resolve_source("/a.pth", options, files) == "/a.pth");
  options.sha256[0] = 'c';
  try {
    resolve_source("/a.pth", options, files);
    FAIL("another digest was accepted");
  } catch (const IoError& error) {
    CHECK(error.code == EBADMSG);
    CHECK(holds(error.what(), "ba7816bf"));
  }
}

TEST_CASE("options out of range are refused by name") {
  const auto refusal = [](auto change) {
    SourceOptions options;
    change(options);
    return refusal_of("/a", options);
  };
  CHECK(holds(refusal([](SourceOptions& o) { o.sha256 = "abc"; }), "sha256"));
  CHECK(holds(refusal([](SourceOptions& o) { o.max_bytes = 0; }), "max_bytes"));
  CHECK(holds(refusal([](SourceOptions& o) { o.max_redirects = -1; }), "max_redirects"));
  CHECK(holds(refusal([](SourceOptions& o) { o.retries = -1; }), "retries"));
  CHECK(holds(refusal([](SourceOptions& o) { o.connect_timeout_seconds = 0; }), "connect_timeout_seconds"));
  CHECK(holds(refusal([](SourceOptions& o) { o.stall_timeout_seconds = -1; }), "stall_timeout_seconds"));
  CHECK(holds(refusal([](SourceOptions& o) { o.retry_delay_seconds = -1; }), "retry_delay_seconds"));
}

TEST_CASE("the cache folder follows CASTOR_HOME, XDG_CACHE_HOME and HOME, in this order") {
  const Environment home("HOME", "/home/user");
  const Environment cache("XDG_CACHE_HOME", "/caches");
  {
    const Environment castor_home("CASTOR_HOME", "/castor");
    CHECK(default_cache_dir() == "/castor/checkpoints");
  }
  const Environment none("CASTOR_HOME", "");
  CHECK(default_cache_dir() == "/caches/castor/checkpoints");
  const Environment no_cache("XDG_CACHE_HOME", nullptr);
  CHECK(default_cache_dir() == "/home/user/.cache/castor/checkpoints");
  const Environment no_home("HOME", nullptr);
  CHECK(holds(config_error_of([] { default_cache_dir(); }), "CASTOR_HOME"));
}

TEST_CASE("a URL is taken apart, and its secrets stay out of what is shown, sent on and named") {
  const Url url = parse_url("HTTPS://me:p%40ss@Host.example:8443/dir/model-0123abcd.pth?token=secret#part");
  CHECK(url.scheme == "https");
  CHECK(url.user == "me");
  CHECK(url.password == "p@ss");
  CHECK(url.origin == "https://host.example:8443");
  CHECK(url.file_name == "model-0123abcd.pth");
  CHECK(url.request() == "https://host.example:8443/dir/model-0123abcd.pth?token=secret");
  CHECK(url.shown() == "https://host.example:8443/dir/model-0123abcd.pth?...");
  CHECK(shown_source("https://me:pass@host/a") == "https://host/a");
  CHECK(shown_source("https://me:pass@/a") == "https://...");
  CHECK(shown_source("s3://key:secret@bucket") == "s3://...");
  CHECK(parse_url("http://host").request() == "http://host/");
  CHECK(parse_url("http://host?a=b").request() == "http://host/?a=b");
  CHECK(parse_url("http://a@b@host/").origin == "http://host");
  for (const char* bad : {"http://", "http:///a", "http://:80/a", "http://ho st/a", "http://host/a b",
                          "http://host/\r\nX: y", "http://host\\@other/", "ftp://host/a", "host/a"}) {
    INFO(bad);
    CHECK_THROWS_AS(parse_url(bad), ConfigError);
  }
}

TEST_CASE("names in the cache differ with the URL and hold no odd characters") {
  const std::string name = cache_name(parse_url("https://host/a/model%20one-1.pth"));
  CHECK(name.size() == 16 + 1 + std::string("model_20one-1.pth").size());
  CHECK(name.ends_with("_model_20one-1.pth"));
  CHECK(name == cache_name(parse_url("https://me:secret@host/a/model%20one-1.pth#x")));
  CHECK(name != cache_name(parse_url("http://host/a/model%20one-1.pth")));
  CHECK(name != cache_name(parse_url("https://host/a/model%20one-1.pth?v=2")));
  CHECK(cache_name(parse_url("https://host/")).ends_with("_download"));
  const std::string long_name = cache_name(parse_url("https://host/" + std::string(5000, 'x') + ".pth"));
  CHECK(long_name.size() < 150);
  CHECK(long_name.ends_with("x.pth"));
}

TEST_CASE("the hash in a file's name is found, a date is none") {
  CHECK(hash_in_name("resnet50-0676ba61.pth") == "0676ba61");
  CHECK(hash_in_name("shufflenetv2_x0.5-f707e7126e.pth") == "f707e7126e");
  CHECK(hash_in_name("resnet18_8xb32_in1k_20210831-fbbb1da6.pth") == "fbbb1da6");
  CHECK(hash_in_name("model-20210831.pth").empty());
  CHECK(hash_in_name("model-20219931.pth") == "20219931");
  for (const char* none :
       {"model.pth", "model-abc.pth", "model-0676BA61.pth", "model-0676ba61.zip", "0676ba61.pth", ""}) {
    CHECK(hash_in_name(none).empty());
  }
}

TEST_CASE("SHA-256 gives the digests of its specification") {
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace castor::strategy
