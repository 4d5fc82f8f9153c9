"""Samples of a list of seeds in shard files: by any number of ranks, resumable, always the same bits."""

from gmmkernel.sharding.load import ShardedSamples, load_shards
from gmmkernel.sharding.sample import ShardReport, sample_shards

__all__ = ["ShardReport", "ShardedSamples", "load_shards", "sample_shards"]
