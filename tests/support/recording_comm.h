// A Comm that notes every collective that is asked of it, and how, before another one carries it out; and when somebody
// waits for one that was started.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/device/dispatch.h"
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

  /// One line a call, those of groups split from this one included: "started", "ran" or "waited for", and the
  /// collective.
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
    const std::string text = collective.describe();
    note("started " + text);
    return dist::Work(std::make_shared<Watched>(inner_.start(std::move(collective)), record_, text));
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
  class Watched final : public dist::Work::State {
   public:
    Watched(dist::Work work, std::shared_ptr<Record> record, std::string text)
        : work_(std::move(work)), record_(std::move(record)), text_(std::move(text)) {}
    bool done() const override { return work_.done(); }
    void wait(std::optional<std::chrono::milliseconds> limit) override {
      {
        const std::lock_guard lock(record_->mutex);
        record_->text += "waited for " + text_ + "\n";
      }
      limit ? work_.wait(*limit) : work_.wait();
    }

   private:
    dist::Work work_;
    std::shared_ptr<Record> record_;
    std::string text_;
  };
  RecordingComm(std::unique_ptr<dist::Comm> group, std::shared_ptr<Record> record)
      : group_(std::move(group)), inner_(*group_), record_(std::move(record)) {}

  std::unique_ptr<dist::Comm> group_;  // owned where it was split
  dist::Comm& inner_;
  std::shared_ptr<Record> record_;
};

/// Puts ops between the collectives of a rank.
class OpNotes final : public DispatchObserver {
 public:
  explicit OpNotes(RecordingComm& comm) : comm_(comm) {}
  void before(const OpCall& call) override { comm_.note(call.name); }

 private:
  RecordingComm& comm_;
};

}  // namespace castor::test
