"""Routing: the task of a model that an ability needs, by the facts of the model's family.

Used where texts are compared with texts, as in an evaluation or a curation. A model without tasks encodes all texts alike.
The names of the abilities are the types of tasks in mteb, and the routes are those that Jina publishes for its models.
"""

from __future__ import annotations

from actors.encoders.spec import ModelSpec
from actors.errors import TaskMissing
from pipeline.job.config import Job
from pipeline.run.context import describe_model

DOCUMENTS = "retrieval.passage"
_SIMILARITY = ("text-matching",)
_ROUTES = {
    "STS": _SIMILARITY,
    "BitextMining": _SIMILARITY,
    "Summarization": _SIMILARITY,
    "PairClassification": ("classification", *_SIMILARITY),
    "Classification": ("classification",),
    "MultilabelClassification": ("classification",),
    "Clustering": ("separation",),
    "Reranking": ("separation",),
}


def with_task(job: Job) -> Job:
    """Return a job with the task of documents, if its model needs a task and the job sets none.

    Raises:
        ConfigError: see `describe_model`.
    """
    try:
        describe_model(job)
    except TaskMissing:
        return job.model_copy(update={"encoder": job.encoder.model_copy(update={"task": DOCUMENTS})})
    return job


def task_of(spec: ModelSpec, ability: str, *, document: bool = False, code: bool = False) -> str | None:
    """Return the task with which a model encodes texts for an ability; None if it has no tasks.

    Args:
        spec: The model.
        ability: Type of a task in mteb. Where no task of the model is made for it, the texts are queries or documents.
        document: True for documents that are searched.
        code: True for texts about programs.
    """
    if code and "code.passage" in spec.tasks:
        return "code.passage" if document else "code.query"
    for task in _ROUTES.get(ability, ()):
        if task in spec.tasks:
            return task
    documents = spec.task if spec.task in spec.query_of or DOCUMENTS not in spec.tasks else DOCUMENTS
    return documents if document else spec.query_of.get(documents, documents)
