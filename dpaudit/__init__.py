"""dpaudit: make "this model was fine-tuned with differential privacy" checkable.

The privacy language lives here: stages, ledgers, guarantees, errors. Importing it does not import torch.
"""

from dpaudit._errors import DpauditError as DpauditError
from dpaudit._errors import InvalidEvidence as InvalidEvidence
from dpaudit._errors import InvalidValue as InvalidValue
from dpaudit._errors import PrivacyRefusal as PrivacyRefusal
from dpaudit._errors import UnsupportedModel as UnsupportedModel
from dpaudit._errors import UnsupportedStage as UnsupportedStage
from dpaudit._guarantee import Guarantee as Guarantee
from dpaudit._ledger import Ledger as Ledger
from dpaudit._protocols import Budget as Budget
from dpaudit._protocols import Calibrate as Calibrate
from dpaudit._protocols import Journal as Journal
from dpaudit._protocols import MemoryJournal as MemoryJournal
from dpaudit._stage import Clip as Clip
from dpaudit._stage import Mechanism as Mechanism
from dpaudit._stage import Relation as Relation
from dpaudit._stage import Sampling as Sampling
from dpaudit._stage import Stage as Stage
from dpaudit._version import __version__ as __version__
