// What was trained and pushed in a simulated cluster, and what must hold of it at any time.
//
// Every step pushes, to each shard, a 1 into one cell of its incarnation and its clock into
// another. So the values of a shard, live or in an image, must be exactly what its watermarks say:
// a push that was lost, applied twice or applied beyond the watermark shows in one of the two sums.
// Each push names the data positions it trained, so that positions left out or repeated show too.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "common/layout/layout.h"
#include "coordinator/core/job_state.h"
#include "ps-server/core/shard.h"
#include "tests/simulation/cluster/disk.h"
#include "tests/simulation/cluster/schedule.h"

namespace ps::simulation {

inline constexpr float kInitialValue = 5;
inline constexpr std::uint32_t kCells = 48;  // incarnations that share none; elements: twice that

// What a push adds to one shard.
struct Units {
  double count = 0;
  double clocks = 0;
  bool empty() const { return count == 0; }
};

class History {
 public:
  struct Push {
    std::uint64_t begin = 0;  // data positions, empty for a flush
    std::uint64_t end = 0;
    std::vector<Units> shards;  // emptied where the worker took it back
  };
  struct Run {  // of one incarnation
    Clock first_clock;
    Clock last_clock;
    bool orphan = false;   // its agent was away, or seemed so: what it pushed last may be repeated
    bool rewound = false;  // the job went back since: what is not in that checkpoint is done again
    bool ring_lost = false;  // its machine crashed with the ring: what it pushed last may be lost
  };

  History(Schedule& schedule, const Disk& disk, const Stores& stores)
      : schedule_(schedule), disk_(disk), stores_(stores) {}

  void SetLayout(LayoutView layout) { layout_ = std::move(layout); }
  const LayoutView& layout() const { return layout_; }
  // The job loads every other value of another job's checkpoint; what tasks give there is wrong.
  void SetLoads(bool loads) { loads_ = loads; }
  bool loads() const { return loads_; }
  // What a task gives for an element of a shard.
  float InitialValue(std::size_t element) const {
    return loads_ && element % 2 == 0 ? kInitialValue + 1000 : kInitialValue;
  }
  // Bulk-synchronous: what is acknowledged may be held back from pulls.
  void SetBulk(bool bulk) { bulk_ = bulk; }

  // The first one stays.
  void Fail(const std::string& what);
  const std::string& violation() const { return violation_; }
  // What happened, for whoever looks into a seed; does nothing unless it is wanted.
  std::function<void(const std::string&)> log;
  void Log(const std::string& what) const {
    if (log) log(what);
  }

  // What ZooKeeper says of the job.
  // `away`: dead incarnations whose rings nobody has offered; the job goes on without them.
  void SetJob(bool over, std::uint32_t generation, std::set<Incarnation> away) {
    over_ = over;
    if (generation > generation_) {
      for (auto& [incarnation, run] : runs_) run.rewound = true;
      given_up_.insert(away_.begin(), away_.end());
    }
    generation_ = generation;
    if (!over) away_ = std::move(away);
  }
  // An agent that the coordinator hears has offered this ring for a while: it is not away.
  void Offered(Incarnation incarnation) { away_.erase(incarnation); }
  bool over() const { return over_; }
  std::uint32_t generation() const { return generation_; }

  // ---- told by workers, agents and lanes
  void Began(Incarnation incarnation, Clock first_clock);
  void Pushed(Incarnation incarnation, Clock clock, Push push);
  // The worker emptied this segment in its ring.
  Units TakenBack(Incarnation incarnation, Clock clock, ShardId shard);
  // A verdict that leaves a lane.
  void TooOld(ShardId shard, std::uint32_t lineage, Incarnation incarnation, Clock clock);
  void Restored(ShardId shard, std::uint32_t lineage, const checkpoint::ShardImage& image);
  // The first of a chain tells a worker that the shard has a verdict on the clock.
  void Acknowledged(ShardId shard, std::uint32_t lineage, Epoch epoch, Incarnation incarnation,
                    Clock clock);
  Run& run(Incarnation incarnation) { return runs_[incarnation]; }
  const std::map<Incarnation, Run>& runs() const { return runs_; }

  // ---- checks
  // I1, I2, I3: a live shard holds exactly what its watermarks say.
  // Of one that is the first of its chain also I11: whatever anybody was told of the shard in this
  // lineage is in it; and I13: copies of the shard are equal, bit for bit, after the same changes.
  void CheckShard(const server::Shard& shard, bool first);
  // I11 of a shard that has just become the first of its chain, and from then on I12: who was the
  // first before acknowledges nothing that it lacks.
  void CheckFirst(const server::Shard& shard);
  // I5, I9: a checkpoint that ZooKeeper names as committed is durable, whole and of one cut, and
  // its data position is that of the cut.
  void CheckCommitted(const coordinator::CommittedCheckpoint& checkpoint);
  // I9 of one that was committed before and is still listed: with what it builds on.
  void CheckKept(const coordinator::CommittedCheckpoint& checkpoint);
  // I7: what the worker has pulled holds its own pushes up to `acked`.
  void CheckOwnWrites(Incarnation incarnation, Clock acked, ShardId shard, std::uint32_t lineage,
                      std::span<const float> values);
  // I10: the incarnation's pushes up to `clock` are let go.
  void CheckReleased(Incarnation incarnation, Clock clock);
  // A job that has succeeded: its last checkpoint holds every push and every position.
  void CheckEnd(const std::string& directory, std::uint64_t total, std::uint64_t repeated);

  // How pulled values differ from those of the newest committed checkpoint; for people.
  std::string Difference(ShardId shard, std::span<const float> values) const;

  std::uint64_t records_repeated() const { return records_repeated_; }
  std::uint64_t records_lost() const { return records_lost_; }
  std::uint64_t checks() const { return checks_; }
  std::uint64_t pushes() const { return push_count_; }
  std::uint64_t too_old() const { return too_old_count_; }
  std::uint64_t restores() const { return restores_; }
  std::uint64_t promotions() const { return promotions_; }
  std::uint64_t copies_compared() const { return copies_compared_; }
  // Shards of committed checkpoints that build on earlier ones.
  std::uint64_t increments() const { return increments_; }
  std::uint64_t copies_checked() const { return copies_checked_; }
  std::uint64_t kept_checked() const { return kept_checked_; }

 private:
  struct Loaded {
    const checkpoint::Manifest* manifest = nullptr;
    std::vector<std::shared_ptr<const checkpoint::ShardImage>> images;  // by shard
  };
  // The durable copy; fails the history if there is none.
  bool Load(const coordinator::CommittedCheckpoint& checkpoint, bool of_new, Loaded& loaded);
  // Folders in which something of the checkpoint is said to lie, and which are not lost.
  std::vector<std::string> StoresOf(const coordinator::CommittedCheckpoint& checkpoint) const;
  void CheckImage(const checkpoint::ShardImage& image, const std::string& where);
  // How often each position is in the image.
  std::vector<std::uint32_t> CountPositions(const checkpoint::ShardImage& image,
                                            std::uint64_t total, bool all_but_orphans) const;
  // Whether someone whose pushes may be lost has trained the position.
  bool MayBeLost(std::uint64_t position) const;
  static Clock WatermarkOf(const checkpoint::ShardImage& image, Incarnation incarnation,
                           Clock otherwise);

  // Calls act(clock, push) for those of the incarnation up to `until`.
  template <typename Act>
  void ForPushes(Incarnation incarnation, Clock until, Act act) const;

  Schedule& schedule_;
  const Disk& disk_;
  const Stores& stores_;
  LayoutView layout_;
  bool bulk_ = false;
  bool loads_ = false;
  bool over_ = false;
  std::uint32_t generation_ = 1;
  std::set<Incarnation> away_;
  std::set<Incarnation> given_up_;  // were away when the job went back, or off the cluster
  std::string violation_;
  std::map<Incarnation, Run> runs_;
  // By incarnation, from the clock after its first one.
  std::map<Incarnation, std::vector<Push>> pushes_;
  std::uint64_t push_count_ = 0;
  using Life = std::pair<ShardId, std::uint32_t>;  // a shard in one lineage
  std::map<Life, std::set<std::pair<Incarnation, Clock>>> too_old_;
  // The newest first of a shard's chain, and what it had when it became it.
  struct First {
    Epoch epoch;
    std::map<Incarnation, Clock> watermarks;
  };
  std::map<Life, First> firsts_;
  std::map<Life, std::map<Incarnation, Clock>> acknowledged_;
  std::map<std::tuple<ShardId, std::uint32_t, Epoch, std::uint64_t>, std::string> digests_;
  std::map<std::string, checkpoint::Manifest> manifests_;  // by the hash of their text
  Loaded newest_;                                          // committed
  std::uint64_t records_repeated_ = 0;
  std::uint64_t records_lost_ = 0;
  std::uint64_t checks_ = 0;
  std::uint64_t too_old_count_ = 0;
  std::uint64_t restores_ = 0;
  std::uint64_t promotions_ = 0;
  std::uint64_t copies_compared_ = 0;
  std::uint64_t increments_ = 0;
  std::uint64_t copies_checked_ = 0;
  std::uint64_t kept_checked_ = 0;
};

}  // namespace ps::simulation
