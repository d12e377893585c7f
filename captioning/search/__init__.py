"""Writes captions: the searches, their choice by validation, and captions for many pictures."""
