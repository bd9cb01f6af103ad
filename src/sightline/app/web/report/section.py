"""One section of the report: a run of a method, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightline.images.plotting.figures import Heatmap
from sightline.methods.evaluation.summary import TrustSummary
from sightline.registry.method import Method
from sightline.registry.result import Result


@dataclass(frozen=True)
class ReportSection:
    """One run of one method.

    Attributes:
        folder: The folder of its files beside the page, and its anchor in the page.
        command: The command line that makes it again.
        run: Which of the method's runs in the report it is, from 0.
        result: None if the method refused or failed.
        refusal_reason: Why the method does not apply to this network.
        failure: The unexpected error that ended it, in one line.
    """

    method: Method
    folder: str
    command: str
    parameters: Mapping[str, Any]
    run: int = 0
    seconds: float = 0.0
    result: Result | None = None
    refusal_reason: str = ""
    failure: str = ""
    trust_summary: TrustSummary | None = None

    @property
    def title(self) -> str:
        """The title of this run: the method's, or its own where the method has several."""
        titles = self.method.tour_titles
        if not titles:
            return self.method.title
        settings = dict(self.parameters)
        if self.result:
            settings |= self.result.chosen
        try:
            return titles[self.run].format(**settings)
        except KeyError:  # a parameter that the run has yet to choose
            return self.method.title

    @property
    def heatmap(self) -> Heatmap | None:
        """The attribution that stands in the matrix of the report, if it has one."""
        if self.result is None:
            return None
        heatmaps = [
            figure for figure in self.result.figures.values() if isinstance(figure, Heatmap)
        ]
        return heatmaps[0] if heatmaps else None
