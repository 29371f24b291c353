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
  explicit RecordingComm(dist::Comm& inner) : inner_(inner), record_(std::make_shared<Record>()) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  const std::string& name() const override { return inner_.name(); }
  const std::vector<int>& members() const override { return inner_.members(); }
  std::unique_ptr<dist::Comm> split(int color, int key) override {
    std::unique_ptr<dist::Comm> group = inner_.split(color, key);
    return group == nullptr ? nullptr : std::unique_ptr<dist::Comm>(new RecordingComm(std::move(group), record_));
  }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }

  /// One line a collective, those of groups split from this one included: "started" or "ran", and what it is.
  std::string text() const {
    const std::lock_guard lock(record_->mutex);
    return record_->text;
  }
  /// Puts something else between them.
  void note(const std::string& line) {
    const std::lock_guard lock(record_->mutex);
    record_->text += line + "\n";
  }

 protected:
  dist::Work submit(dist::Collective collective) override {
    note("started " + collective.describe());
    return inner_.start(std::move(collective));
  }
  void execute(dist::Collective collective) override {
    note("ran " + collective.describe());
    inner_.run(std::move(collective));
  }

 private:
  struct Record {
    std::mutex mutex;
    std::string text;
  };
  RecordingComm(std::unique_ptr<dist::Comm> group, std::shared_ptr<Record> record)
      : group_(std::move(group)), inner_(*group_), record_(std::move(record)) {}

  std::unique_ptr<dist::Comm> group_;  // owned where it was split
  dist::Comm& inner_;
  std::shared_ptr<Record> record_;
};

}  // namespace castor::test
