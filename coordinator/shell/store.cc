#include "coordinator/shell/store.h"

#include <charconv>
#include <utility>

#include "common/error_id.h"

namespace ps::coordinator {
namespace {

void Join(Output& into, Output&& from) {
  for (NodeWrite& write : from.writes) {
    bool replaced = false;
    for (NodeWrite& earlier : into.writes) {
      if (earlier.path != write.path) continue;
      earlier.data = std::move(write.data);  // a node created in this batch stays a create
      replaced = true;
      break;
    }
    if (!replaced) into.writes.push_back(std::move(write));
  }
  std::move(from.sends.begin(), from.sends.end(), std::back_inserter(into.sends));
  std::move(from.answers.begin(), from.answers.end(), std::back_inserter(into.answers));
}

struct Reading {
  Records records;
  std::size_t open = 0;
  std::optional<Error> error;
  std::function<void(Result<Records>)> callback;

  void Done() {
    if (--open > 0) return;
    if (error) {
      callback(*error);
    } else {
      callback(std::move(records));
    }
  }
};

}  // namespace

Store::Store(zk::Session& session, zk::Leadership leadership, std::function<void(Output&)> release,
             std::function<void(const std::string&)> failed)
    : session_(session),
      leadership_(std::move(leadership)),
      release_(std::move(release)),
      failed_(std::move(failed)),
      alive_(std::make_shared<int>(0)) {}

void Store::Write(Output output) {
  if (broken_) return;
  Join(pending_, std::move(output));
  if (!writing_) Next();
}

void Store::Next() {
  Output batch = std::exchange(pending_, Output());
  if (batch.empty()) return;
  if (batch.writes.empty()) {
    release_(batch);
    return;
  }
  std::vector<zk::Op> ops;
  ops.push_back(leadership_.Fence());
  for (const NodeWrite& write : batch.writes) {
    ops.push_back(write.create ? zk::Op::Create(write.path, write.data)
                               : zk::Op::Set(write.path, write.data, zk::kAnyVersion));
  }
  writing_ = true;
  auto shared = std::make_shared<Output>(std::move(batch));
  session_.Multi(std::move(ops), [this, shared, alive = std::weak_ptr<void>(alive_)](
                                     const zk::MultiOutcome& outcome) {
    if (alive.expired()) return;
    writing_ = false;
    if (!outcome.status.ok()) {
      broken_ = true;
      failed_(outcome.status.error().message);
      return;
    }
    release_(*shared);
    if (!alive.expired() && !broken_) Next();
  });
}

void ReadRecords(zk::Session& session, std::weak_ptr<void> alive,
                 std::function<void(Result<Records>)> callback) {
  session.EnsurePath("/jobs", [&session, alive, callback = std::move(callback)](Status ensured) {
    if (alive.expired()) return;
    if (!ensured.ok()) return callback(ensured.error());
    session.Children("/jobs", [&session, alive, callback](Result<std::vector<std::string>> names) {
      if (alive.expired()) return;
      if (!names.ok()) return callback(names.error());
      auto reading = std::make_shared<Reading>();
      reading->callback = callback;
      reading->open = 1;
      reading->records.jobs.resize(names->size());
      ++reading->open;
      session.Get(Core::kClusterPath, [reading, alive](Result<zk::NodeValue> value) {
        if (alive.expired()) return;
        if (value.ok()) {
          reading->records.cluster = std::move(value->data);
        } else if (value.error().code != ErrorCode::kNotFound && !reading->error) {
          reading->error = Annotate(value.error(), std::string(Core::kClusterPath) + ": ");
        }
        reading->Done();
      });
      for (std::size_t i = 0; i < names->size(); ++i) {
        const std::string& name = (*names)[i];
        JobRecord& record = reading->records.jobs[i];
        const auto [end, error] =
            std::from_chars(name.data(), name.data() + name.size(), record.id);
        if (error != std::errc() || end != name.data() + name.size()) {
          reading->error =
              Error{ErrorId::kZooKeeperContent, "/jobs/" + name + " is not a job's node"};
          break;
        }
        const auto get = [&](const char* node, std::string JobRecord::*field) {
          ++reading->open;
          session.Get(
              "/jobs/" + name + "/" + node,
              [reading, alive, i, field, path = name + "/" + node](Result<zk::NodeValue> value) {
                if (alive.expired()) return;
                if (value.ok()) {
                  reading->records.jobs[i].*field = std::move(value->data);
                } else if (!reading->error) {
                  reading->error = Annotate(value.error(), "/jobs/" + path + ": ");
                }
                reading->Done();
              });
        };
        get("spec", &JobRecord::spec);
        get("layout", &JobRecord::layout);
        get("state", &JobRecord::state);
        get("map", &JobRecord::map);
        get("events", &JobRecord::events);
      }
      reading->Done();
    });
  });
}

}  // namespace ps::coordinator
