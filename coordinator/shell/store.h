// The leader's writes to ZooKeeper, in order, one transaction at a time.
//
// Each batch goes out as one multi that checks the leadership first; only when
// it is durable do its messages and answers leave. Batches that come while one
// is under way are joined into the next. Anything but success ends the
// leadership: what ZooKeeper holds is then read back by whoever leads next.
// On the session's loop; destroy it before the session.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/zookeeper/election.h"
#include "common/zookeeper/session.h"
#include "coordinator/core/core.h"

namespace ps::coordinator {

class Store {
 public:
  // `release` gets the sends and answers of a batch that is durable; `failed` is called at most
  // once, with the reason, and nothing is written or released after it.
  Store(zk::Session& session, zk::Leadership leadership, std::function<void(Output&)> release,
        std::function<void(const std::string&)> failed);

  void Write(Output output);

 private:
  void Next();

  zk::Session& session_;
  const zk::Leadership leadership_;
  const std::function<void(Output&)> release_;
  const std::function<void(const std::string&)> failed_;
  bool writing_ = false;
  bool broken_ = false;
  Output pending_;
  std::shared_ptr<void> alive_;
};

struct Records {
  std::vector<JobRecord> jobs;
  std::optional<std::string> cluster;  // for Core::LoadCluster(), if its node is there
};

// Reads what former leaders left. The callback is called once; not at all if `alive` is gone by
// then.
void ReadRecords(zk::Session& session, std::weak_ptr<void> alive,
                 std::function<void(Result<Records>)> callback);

}  // namespace ps::coordinator
