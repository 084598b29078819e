"""Import what every rank needs, so that a forked rank finds it there."""

import torch.distributed.elastic.multiprocessing.api
import torch.distributed.elastic.multiprocessing.errors
import torch.multiprocessing.spawn  # noqa: F401

import pytest_pprank
import pytest_pprank.assertions
import pytest_pprank.fixtures
import pytest_pprank.host.main
import pytest_pprank.host.session
import pytest_pprank.plugin
import pytest_pprank.rank.store  # noqa: F401
