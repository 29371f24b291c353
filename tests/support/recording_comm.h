// A Comm that notes every collective that is asked of it, and how, before another one carries it out.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "dist/comm.h"

namespace castor::test {

class RecordingComm final : public dist::Comm {
 public:
  explicit RecordingComm(dist::Comm& inner) : inner_(inner) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  const std::string& name() const override { return inner_.name(); }
  const std::vector<int>& members() const override { return inner_.members(); }
  std::unique_ptr<dist::Comm> split(int color, int key) override { return inner_.split(color, key); }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }

  /// One line a collective: "started" or "ran", and what it is.
  std::string text() const {
    const std::lock_guard lock(mutex_);
    return text_;
  }

 protected:
  dist::Work submit(dist::Collective collective) override {
    note("started ", collective);
    return inner_.start(std::move(collective));
  }
  void execute(dist::Collective collective) override {
    note("ran ", collective);
    inner_.run(std::move(collective));
  }

 private:
  void note(const char* how, const dist::Collective& collective) {
    const std::lock_guard lock(mutex_);
    text_ += how + collective.describe() + "\n";
  }

  dist::Comm& inner_;
  mutable std::mutex mutex_;
  std::string text_;
};

}  // namespace castor::test
