"""Imports what every rank needs, so that forked ranks need not."""

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
