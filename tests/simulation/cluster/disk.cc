#include "tests/simulation/cluster/disk.h"

#include <utility>

namespace ps::simulation {
namespace {

bool Below(const std::string& path, const std::string& directory) {
  return path.size() > directory.size() && path.compare(0, directory.size(), directory) == 0 &&
         path[directory.size()] == '/';
}
bool DirectlyBelow(const std::string& path, const std::string& directory) {
  return Below(path, directory) && path.find('/', directory.size() + 1) == std::string::npos;
}

}  // namespace

std::string RoundBeside(const std::string& round_directory, Round round) {
  return round_directory.substr(0, round_directory.rfind('/') + 1) + "ckpt-" +
         std::to_string(round.value());
}

Status Disk::Room(MachineId machine, const std::string& path) const {
  if (full(machine)) return Error{ErrorCode::kIo, path + ": no space left on device"};
  return Ok();
}

Status Disk::Write(MachineId machine, const std::string& path, DiskContent content) {
  PS_TRY(Room(machine, path));
  visible_[path] = std::make_shared<File>(File{std::move(content), false, machine});
  return Ok();
}

Status Disk::Sync(MachineId machine, const std::string& path) {
  PS_TRY(Room(machine, path));
  const auto found = visible_.find(path);
  if (found == visible_.end()) return Error{ErrorCode::kNotFound, path};
  found->second->synced = true;
  return Ok();
}

Status Disk::Rename(MachineId machine, const std::string& from, const std::string& to) {
  PS_TRY(Room(machine, to));
  const auto found = visible_.find(from);
  if (found == visible_.end()) return Error{ErrorCode::kNotFound, from};
  visible_[to] = found->second;
  visible_.erase(from);
  return Ok();
}

Status Disk::SyncDirectory(MachineId machine, const std::string& directory) {
  PS_TRY(Room(machine, directory));
  for (auto name = durable_.begin(); name != durable_.end();) {
    const bool gone = DirectlyBelow(name->first, directory) && !visible_.contains(name->first);
    name = gone ? durable_.erase(name) : std::next(name);
  }
  for (const auto& [path, file] : visible_) {
    if (DirectlyBelow(path, directory)) durable_[path] = file;
  }
  return Ok();
}

void Disk::Remove(const std::string& path) {
  visible_.erase(path);
  durable_.erase(path);
}

void Disk::RemoveTree(const std::string& directory) {
  for (Names* names : {&visible_, &durable_}) {
    std::erase_if(*names, [&](const auto& name) { return Below(name.first, directory); });
  }
}

Result<const DiskContent*> Disk::Read(const std::string& path) const {
  const auto found = visible_.find(path);
  if (found == visible_.end()) return Error{ErrorCode::kNotFound, path};
  return &found->second->content;
}

Result<const DiskContent*> Disk::ReadDurable(const std::string& path) const {
  const auto found = durable_.find(path);
  if (found == durable_.end()) return Error{ErrorCode::kNotFound, path + " is not durable"};
  if (!found->second->synced)
    return Error{ErrorCode::kInvalid, path + ": its content is not durable"};
  return &found->second->content;
}

Result<const StoredShard*> Disk::ReadStored(const std::string& round_directory,
                                            const checkpoint::ManifestShard& entry,
                                            bool durable) const {
  const std::string path = round_directory + "/" + entry.server + "/DATA";
  const DiskContent* const part = PS_TRY(durable ? ReadDurable(path) : Read(path));
  for (const StoredShard& stored : part->shards) {
    if (stored.image->shard == entry.shard) return &stored;
  }
  return Error{ErrorCode::kInvalid, path + " has no shard " + std::to_string(entry.shard.value())};
}

Result<std::shared_ptr<const checkpoint::ShardImage>> Disk::ReadShard(
    const std::string& round_directory, const checkpoint::ManifestShard& entry,
    bool durable) const {
  const StoredShard& newest = *PS_TRY(ReadStored(round_directory, entry, durable));
  std::shared_ptr<const checkpoint::ShardImage> image = newest.image;
  const auto bad = [&](const std::string& what) {
    return Error{ErrorCode::kInvalid,
                 round_directory + ", shard " + std::to_string(entry.shard.value()) + " " + what};
  };
  if (newest.bases != entry.bases) return bad("builds on other rounds than its manifest says");
  if (!newest.bases.empty()) {
    std::vector<const StoredShard*> chain = {&newest};
    for (const Round base : newest.bases) {
      chain.push_back(PS_TRY(ReadStored(RoundBeside(round_directory, base), entry, durable)));
      const std::vector<Round> rest(
          newest.bases.begin() + static_cast<std::ptrdiff_t>(chain.size()) - 1, newest.bases.end());
      if (chain.back()->bases != rest) return bad("builds on a round that builds on others");
    }
    auto whole = std::make_shared<checkpoint::ShardImage>(*newest.image);
    whole->values = chain.back()->image->values;
    for (auto stored = chain.rbegin() + 1; stored != chain.rend(); ++stored) {
      for (const auto& [element, value] : (*stored)->changed) whole->values[element] = value;
    }
    image = std::move(whole);
  }
  if (checkpoint::Digest(*image) != entry.digest) return bad("is not the one of its manifest");
  return image;
}

std::set<std::string> Disk::List(const std::string& directory) const {
  std::set<std::string> names;
  for (const auto& [path, file] : visible_) {
    if (!Below(path, directory)) continue;
    const std::size_t begin = directory.size() + 1;
    names.insert(path.substr(begin, path.find('/', begin) - begin));
  }
  return names;
}

void Disk::Crash(MachineId machine) {
  Names left;
  for (const auto& [path, file] : visible_) {
    if (file->machine != machine) left[path] = file;
  }
  for (auto name = durable_.begin(); name != durable_.end();) {
    if (name->second->machine == machine && !name->second->synced) {
      name = durable_.erase(name);
      continue;
    }
    if (name->second->machine == machine) left[name->first] = name->second;
    ++name;
  }
  visible_ = std::move(left);
}

void Disk::SetFull(MachineId machine, bool full) {
  if (full) {
    ++full_[machine];
  } else if (full_.contains(machine) && --full_[machine] <= 0) {
    full_.erase(machine);
  }
}

}  // namespace ps::simulation
