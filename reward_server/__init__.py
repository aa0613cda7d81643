"""Who judges: the language-model judge, the annotation store, the annotator and the distilled reward models."""
