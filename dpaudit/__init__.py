"""dpaudit: make "this model was fine-tuned with differential privacy" checkable.

The privacy language lives here: stages, ledgers, guarantees, errors. Importing it does not import torch.
"""

from dpaudit._version import __version__ as __version__
from dpaudit.privacy.errors import DpauditError as DpauditError
from dpaudit.privacy.errors import InvalidEvidence as InvalidEvidence
from dpaudit.privacy.errors import InvalidValue as InvalidValue
from dpaudit.privacy.errors import PrivacyRefusal as PrivacyRefusal
from dpaudit.privacy.errors import PrivacyWarning as PrivacyWarning
from dpaudit.privacy.errors import RunInterrupted as RunInterrupted
from dpaudit.privacy.errors import StorageFailed as StorageFailed
from dpaudit.privacy.errors import UnsupportedModel as UnsupportedModel
from dpaudit.privacy.errors import UnsupportedStage as UnsupportedStage
from dpaudit.privacy.guarantee import Guarantee as Guarantee
from dpaudit.privacy.ledger import Ledger as Ledger
from dpaudit.privacy.protocols import Budget as Budget
from dpaudit.privacy.protocols import Calibrate as Calibrate
from dpaudit.privacy.protocols import Journal as Journal
from dpaudit.privacy.protocols import MemoryJournal as MemoryJournal
from dpaudit.privacy.stage import Clip as Clip
from dpaudit.privacy.stage import Mechanism as Mechanism
from dpaudit.privacy.stage import Relation as Relation
from dpaudit.privacy.stage import Sampling as Sampling
from dpaudit.privacy.stage import Stage as Stage
